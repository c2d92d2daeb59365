"""The distance of samples from real photographs, without downloading a pretrained network.

A small network is trained to classify which of eight changes was applied to real photographs: none, or a change of
sharpness, noise, arrangement, direction, colours or contrast. Its features are therefore sensitive to all of these. The
Fréchet distance (Heusel et al. 2017) uses these features.
"""

import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

CHANGES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda images: images,
    lambda images: functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="reflect"), 3, stride=1),
    lambda images: images + 0.1 * torch.randn_like(images),
    lambda images: images.roll((images.shape[-2] // 2, images.shape[-1] // 2), (-2, -1)),
    lambda images: images.rot90(dims=(-2, -1)),
    lambda images: images.flip(-2),
    lambda images: images.roll(1, 1),
    lambda images: 0.7 * images,
)
FEATURES = 64
BATCH = 256


class Extractor(nn.Module):
    """Classifies the changes; `features` are the inputs of its head."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 128)
        layers: list[nn.Module] = []
        for level, (before, after) in enumerate(pairwise(widths)):
            convolution = nn.Conv2d(before, after, 3, stride=1 if level == 0 else 2, padding=1)
            layers += [convolution, nn.BatchNorm2d(after), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], FEATURES))
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(FEATURES, len(CHANGES)))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the changes, (N, 8), of images in [-1, 1]."""
        logits: Tensor = self.head(self.body(images))
        return logits

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """Return the features of images, uint8 (N, 3, H, W), as float64 (N, 64) on the host."""
        self.eval()
        device = next(self.parameters()).device
        return torch.cat([self.body(_floats(part, device)).double().cpu() for part in images.split(BATCH)])

    @torch.inference_mode()
    def accuracy(self, images: Tensor) -> float:
        """Return the share of correctly classified changes of images, uint8 (N, 3, H, W)."""
        self.eval()
        pixels = _floats(images, next(self.parameters()).device)
        right = [(self(change(pixels)).argmax(1) == label).float().mean() for label, change in enumerate(CHANGES)]
        return float(torch.stack(right).mean())


def train_extractor(images: Tensor, device: torch.device, steps: int = 2000, seconds: float = 60.0) -> Extractor:
    """Return an extractor trained on photographs, uint8 (N, 3, H, W), for at most `steps` and about `seconds`."""
    torch.manual_seed(0)
    extractor = Extractor().to(device)
    optimizer = torch.optim.AdamW(extractor.parameters(), lr=2e-3)
    # The learning rate ends at 0, so that the features do not depend on the last few batches.
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    ends = time.monotonic() + seconds
    for _ in range(steps):
        pixels = _floats(images[torch.randint(len(images), (BATCH,))], device)
        labels = torch.randint(len(CHANGES), (len(pixels),), device=device)
        changed = torch.stack([change(pixels) for change in CHANGES])[labels, torch.arange(len(pixels), device=device)]
        loss = functional.cross_entropy(extractor(changed), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if time.monotonic() > ends:
            break
    return extractor


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """Return the Fréchet distance of the normal distributions with the means and covariances of two sets, (N, F)."""
    means, covariances = zip(*((each.mean(0), each.T.cov()) for each in (features, others)), strict=True)
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors * values.clamp(min=0.0).sqrt() @ vectors.T
    # The eigenvalues of the product of both covariances are those of this symmetric matrix.
    products = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0.0)
    spread = covariances[0].trace() + covariances[1].trace() - 2.0 * products.sqrt().sum()
    return float((means[0] - means[1]).square().sum() + spread)


def _floats(images: Tensor, device: torch.device) -> Tensor:
    return images.to(device).float() / 127.5 - 1.0
