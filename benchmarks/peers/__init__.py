"""The same tasks in this project and in other libraries, each written as in its documentation.

Each module has a class `Task`, built from a `Setting`. `train_step()` takes one training step, and
`sample(count, steps)` returns images by DDIM, uint8 (N, C, H, W). Libraries with the schedule of this project also have
`predict_noise(images, t, noise)`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Setting:
    """The network and the options of its training.

    Attributes:
        size: height and width of the images, in pixels.
        channels: channels of the images.
        dim: channels of the first level.
        dim_mults: channels of each level in multiples of `dim`.
        batch: images per step.
        self_condition: whether the network is self-conditioned.
        learning_rate: the learning rate of every library; 0 for each library's own.
        amp: whether denoising-diffusion-pytorch uses its mixed precision; this project always selects its own.
        images: training images, uint8 (N, C, H, W); random if None.
        process: options of this project's `GaussianDiffusion`.
        ema_halflife_images: half-life of this project's EMA.
    """

    size: int = 32
    channels: int = 3
    dim: int = 64
    dim_mults: tuple[int, ...] = (1, 2, 4)
    batch: int = 32
    self_condition: bool = False
    learning_rate: float = 0.0
    amp: bool = False
    images: Tensor | None = None
    process: Mapping[str, Any] = field(default_factory=dict)
    ema_halflife_images: float = 50_000

    @property
    def network(self) -> dict[str, Any]:
        """The arguments of `Unet`, the same for this project and denoising-diffusion-pytorch."""
        return {
            "dim": self.dim,
            "dim_mults": self.dim_mults,
            "channels": self.channels,
            "self_condition": self.self_condition,
        }

    @property
    def device(self) -> torch.device:
        """A CUDA GPU if there is one, else the CPU."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def data(self) -> Tensor:
        """Return the images, uint8 (N, C, H, W)."""
        if self.images is not None:
            return self.images
        shape = (1024, self.channels, self.size, self.size)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def to_uint8(images: Tensor) -> Tensor:
    """Return images in [0, 1] as uint8 on the host."""
    return (images.clamp(0, 1) * 255).round().byte().cpu()
