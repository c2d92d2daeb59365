"""The feature network, trained on this dataset, that the metrics use.

The published FID uses features of Inception-v3, trained on ImageNet. A Fréchet distance with the features here is a
"domain Fréchet distance". Metrics are comparable only for the same extractor.
"""

import math
from collections.abc import Iterator
from itertools import chain
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffusion_core.progress import Progress
from diffusion_core.runtime.distributed import Ranks
from diffusion_core.runtime.precision import exact_float32

# (n, features), float32 as extracted; the metrics compute in float64.
Features: TypeAlias = NDArray[np.floating]
Images: TypeAlias = NDArray[np.uint8]

SMALLEST_IMAGE = 8


class Extractor(nn.Module):
    """A network that returns the features, (B, features), of images in [-1, 1], (B, C, H, W).

    Attributes:
        features: length of the feature vector.
    """

    features: int


class FeatureNetwork(Extractor):
    """A convolutional network that halves images until the shorter side has about 4 pixels, then averages the pixels.

    The last layer normalises every feature to mean 0 and variance 1 over the training images, so that distances have
    the same scale for every dataset.

    Args:
        image_size: height and width of the images, each at least 8.
        channels: 1 (gray), 3 (RGB) or 4 (RGBA).
        features: length of the feature vector.
        width: channels of the first stage; each later stage doubles them, up to 8 `width`.

    Raises:
        ValueError: a side is smaller than 8 pixels.
    """

    def __init__(self, image_size: tuple[int, int], channels: int, features: int, width: int = 16) -> None:
        super().__init__()
        shorter = min(image_size)
        if shorter < SMALLEST_IMAGE:
            raise ValueError(
                f"image_size is {[*image_size]}; the feature network needs at least {SMALLEST_IMAGE} on each side"
            )
        self.image_size = (image_size[0], image_size[1])  # JSON gives a list
        self.channels = channels
        self.features = features
        stages = min(max(round(math.log2(shorter)) - 1, 2), 5)
        layers: list[nn.Module] = [*_convolution(channels, width, stride=1)]
        inner = width
        for stage in range(1, stages):
            outer = width * 2 ** min(stage, 3)
            layers += [*_convolution(inner, outer, stride=2), *_convolution(outer, outer, stride=1)]
            inner = outer
        self.stages = nn.Sequential(*layers)
        self.embedding = nn.Sequential(nn.Linear(inner, features), nn.BatchNorm1d(features, affine=False))

    def forward(self, images: Tensor) -> Tensor:
        """Return the features, (B, features), of images in [-1, 1], (B, C, H, W)."""
        embedded: Tensor = self.embedding(self.stages(images).mean(dim=(2, 3)))
        return embedded


def to_tensor(images: Images, device: torch.device | None = None) -> Tensor:
    """Return uint8 images, (B, H, W, C), as float32 in [-1, 1], (B, C, H, W).

    Colours are multiplied by alpha, if there is one, so that transparent pixels count less.
    """
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float()
    if pixels.shape[1] == 4:
        pixels[:, :3] *= pixels[:, 3:] / 255.0
    return pixels / 127.5 - 1.0


def extract(
    network: Extractor,
    images: Images,
    batch_size: int = 256,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    progress: Progress | None = None,
) -> Features:
    """Return the features of uint8 images, (n, H, W, C), as float32, (n, features).

    The network runs in eval mode and in full float32, so the features of an image do not depend on other images. Each
    of several processes computes its share; the main rank returns all features, the others those of their share. The
    images that are done are added to `progress`.
    """
    # A frozen network has buffers alone.
    device = next(chain(network.parameters(), network.buffers())).device
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode(), exact_float32():
            share = ranks.share(len(images))
            own, batches = images[share.start : share.stop], []
            for span in spans(len(own), batch_size):
                batches.append(network(to_tensor(own[span], device)).cpu())
                if progress is not None:
                    # As much as all processes have done.
                    progress.add(len(batches[-1]) * ranks.count)
    finally:
        network.train(was_training)
    features = torch.cat([torch.empty(0, network.features), *batches])
    gathered = ranks.gather(features, len(images))
    return (features if gathered is None else gathered).numpy()


def spans(count: int, size: int) -> Iterator[slice]:
    """Split 0 .. count-1 into slices of at most `size`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _convolution(inner: int, outer: int, stride: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inner, outer, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outer),
        nn.SiLU(),
    )
