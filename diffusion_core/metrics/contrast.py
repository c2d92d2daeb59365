"""Features learned without labels: SimCLR, Chen et al. 2020 (https://arxiv.org/abs/2002.05709).

Two random views of one image shall be nearer to each other than to the views of all other images of the batch. With
z the normalised projections of the 2B views and view j the partner of view i,

    loss_i = -log( exp(z_i . z_j / tau) / sum over k != i of exp(z_i . z_k / tau) )        (NT-Xent, equation 1)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_core.data.dataset import ImageDataset
from diffusion_core.metrics.features import FeatureNetwork, to_tensor
from diffusion_core.metrics.fitting import Indices, fit
from diffusion_core.metrics.views import cropped, relit
from diffusion_core.settings import ReferenceSettings

TEMPERATURE = 0.2


def nt_xent(first: Tensor, second: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Return the mean loss of paired projections, (B, d) each; row i of one belongs to row i of the other."""
    projections = F.normalize(torch.cat((first, second)), dim=1)
    similarity = projections @ projections.T / temperature
    similarity.fill_diagonal_(-torch.inf)
    partners = torch.arange(len(projections), device=first.device).roll(len(first))
    return F.cross_entropy(similarity, partners)


def learn_contrast(network: FeatureNetwork, train: ImageDataset, settings: ReferenceSettings) -> dict[str, float]:
    """Train the network, with a projection behind it, to recognise an image in two crops under different light.

    Returns:
        `final_loss`: the mean loss of the last tenth of the training; log(2 B - 1) is chance.
    """
    device = next(network.parameters()).device
    width = network.features
    projection = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)).to(device)

    def loss_of(indices: Indices) -> Tensor:
        images = to_tensor(train.images(indices), device)
        views = torch.cat((relit(cropped(images)), relit(cropped(images))))
        first, second = projection(network(views)).chunk(2)
        return nt_xent(first, second)

    module = nn.ModuleList((network, projection))
    return {"final_loss": fit(module, loss_of, len(train), settings, "features by contrast")}
