"""Trains the feature extractor on the real images: with their labels, or by contrastive learning without labels."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from diffusion_core.config.settings import ReferenceSettings
from diffusion_core.data.dataset import ImageDataset
from diffusion_core.metrics.features import FeatureNetwork, extract, to_tensor
from diffusion_core.progress import Progress


def shifted(images: Tensor, share: float = 0.125) -> Tensor:
    """Shift each image at random by whole pixels, at most `share` of its height and width; border pixels repeat.

    Shifts by fractions of a pixel would blur the images, so that the features would ignore blur.
    """
    batch, _, height, width = images.shape
    down, across = (max(1, round(share * side)) for side in (height, width))
    padded = F.pad(images, (across, across, down, down), mode="replicate")
    rows = torch.randint(2 * down + 1, (batch, 1)) + torch.arange(height)
    columns = torch.randint(2 * across + 1, (batch, 1)) + torch.arange(width)
    which = torch.arange(batch)[:, None, None]
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cropped(images: Tensor, smallest: float = 0.5) -> Tensor:
    """Crop each image to a random part with the same aspect ratio, each side `smallest` to 1, and scale it back."""
    batch = len(images)
    side = smallest + (1.0 - smallest) * torch.rand(batch)
    centre = (1.0 - side) * (2.0 * torch.rand(2, batch) - 1.0)
    affine = torch.zeros(batch, 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = side
    affine[:, :, 2] = centre.T
    grid = F.affine_grid(affine, list(images.shape), align_corners=False).to(images)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def relit(images: Tensor, strength: float = 0.4) -> Tensor:
    """Change contrast about the mean by up to +- `strength` and brightness by up to +- `strength` / 2, at random.

    A fourth channel, alpha, does not change.
    """
    contrast, brightness = (2.0 * torch.rand(2, len(images), 1, 1, 1) - 1.0).to(images)
    colour, alpha = images[:, :3], images[:, 3:]
    mean = colour.mean(dim=(1, 2, 3), keepdim=True)
    changed = (colour - mean) * (1.0 + strength * contrast) + mean + 0.5 * strength * brightness
    return torch.cat((changed, alpha), dim=1)


def learn_classes(
    network: FeatureNetwork, train: ImageDataset, validation: ImageDataset, settings: ReferenceSettings
) -> dict[str, float]:
    """Train the network and a linear layer on its features to classify shifted images.

    Returns:
        `validation_accuracy`: the share of validation images with the correct class, in [0, 1].
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


TEMPERATURE = 0.2


def nt_xent(first: Tensor, second: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Return the mean NT-Xent loss of projections, (B, d) each; row i of both is of the same image."""
    projections = F.normalize(torch.cat((first, second)), dim=1)
    similarity = projections @ projections.T / temperature
    similarity.fill_diagonal_(-torch.inf)
    partners = torch.arange(len(projections), device=first.device).roll(len(first))
    return F.cross_entropy(similarity, partners)


def learn_contrast(network: FeatureNetwork, train: ImageDataset, settings: ReferenceSettings) -> dict[str, float]:
    """Train the network and a projection by contrastive learning on two random crops of each image.

    Returns:
        `final_loss`: the mean loss of the last tenth of the training; log(2 B - 1) is chance level.
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


Indices = NDArray[np.int64]


def fit(
    module: nn.Module, loss_of: Callable[[Indices], Tensor], count: int, settings: ReferenceSettings, title: str
) -> float:
    """Minimise a loss with AdamW and the one-cycle schedule for `settings.images` images.

    Args:
        module: the module to train.
        loss_of: returns the loss of the images at `indices`.
        count: images of the dataset.
        settings: training budget, batch size and learning rate.
        title: what is trained, for the progress.

    Returns:
        The mean loss of the last tenth of the training.
    """
    batch_size = min(settings.batch_size, count)
    steps = max(1, settings.images // batch_size)
    optimizer = torch.optim.AdamW(module.parameters(), settings.learning_rate)
    # At least two steps, because the schedule divides by the length of its two phases.
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=max(steps, 2))
    losses = []
    module.train()
    batches = _batches(count, batch_size)
    with Progress(title, steps * batch_size, "images") as progress:
        for _ in range(steps):
            loss = loss_of(next(batches))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
            progress.add(batch_size)
    module.eval()
    return float(torch.stack(losses[-max(1, steps // 10) :]).mean())


def _batches(count: int, batch_size: int) -> Iterator[Indices]:
    while True:
        order = torch.randperm(count).numpy()
        # Only full batches, because batch normalisation fails for a single image.
        for start in range(0, count - batch_size + 1, batch_size):
            yield order[start : start + batch_size]
