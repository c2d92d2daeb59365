"""Features learned from the dataset's own labels: what tells its classes apart."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_core.data.dataset import ImageDataset
from diffusion_core.metrics.features import FeatureNetwork, extract, to_tensor
from diffusion_core.metrics.fitting import Indices, fit
from diffusion_core.metrics.views import shifted
from diffusion_core.settings import ReferenceSettings


def learn_classes(
    network: FeatureNetwork, train: ImageDataset, validation: ImageDataset, settings: ReferenceSettings
) -> dict[str, float]:
    """Train the network, with a linear layer behind it, to name the class of a shifted image.

    Returns:
        `validation_accuracy`: the share of validation images, in [0, 1], whose class is named rightly.
    """
    device = next(network.parameters()).device
    head = nn.Linear(network.features, len(train.info.classes)).to(device)
    labels = torch.from_numpy(train.labels).to(device)

    def loss_of(indices: Indices) -> Tensor:
        images = shifted(to_tensor(train.images(indices), device))
        return F.cross_entropy(head(network(images)), labels[torch.from_numpy(indices)])

    fit(nn.ModuleList((network, head)), loss_of, len(train), settings, "features from labels")
    with torch.inference_mode():
        named = head(torch.from_numpy(extract(network, validation.images())).to(device)).argmax(dim=1)
    return {"validation_accuracy": float((named.cpu().numpy() == validation.labels).mean())}
