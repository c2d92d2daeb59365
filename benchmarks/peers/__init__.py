"""The same work in this project and in its peers, each written as its own documentation does it.

Each module has `Task`, made of a `Setting`: a network and a process with `train_step()`, which takes one step of
training, and `sample(count, steps)`, which returns images by DDIM, uint8 (N, C, H, W). Those with the schedule of this
project have `predict_noise(images, t, noise)` too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Setting:
    """What is trained.

    Attributes:
        size: height and width of the images, in pixels.
        channels: of the images.
        dim: channels of the first level.
        dim_mults: of the levels.
        batch: images a step.
        self_condition: the network sees its previous guess.
        learning_rate: of all libraries alike, or each one's own where it is 0.
        amp: denoising-diffusion-pytorch trains with its own mixed precision; this project always chooses itself.
        images: uint8 (N, C, H, W) to train on; random ones if None.
        process: options of this project's `GaussianDiffusion`.
        ema_halflife_images: of this project's EMA.
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
        """The arguments of `Unet`, which are the same in this project and in denoising-diffusion-pytorch."""
        return {
            "dim": self.dim,
            "dim_mults": self.dim_mults,
            "channels": self.channels,
            "self_condition": self.self_condition,
        }

    @property
    def device(self) -> torch.device:
        """A GPU where there is one."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def data(self) -> Tensor:
        """Return the images, uint8 (N, C, H, W)."""
        if self.images is not None:
            return self.images
        shape = (1024, self.channels, self.size, self.size)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def to_uint8(images: Tensor) -> Tensor:
    """Return images in [0, 1] as bytes on the host."""
    return (images.clamp(0, 1) * 255).round().byte().cpu()
