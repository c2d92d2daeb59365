"""What the trainer asks of a dataset."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from diffusion_core.runtime.transfer import to_device


class TrainingData(Protocol):
    """Images that are looked up by index."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return images, uint8 (B, C, H, W), and labels, int64 (B,), or None where there are none."""
        ...


@dataclass(frozen=True)
class TensorData:
    """Images in memory: uint8 (N, C, H, W), with labels, int64 (N,) on the host, or without.

    Raises:
        ValueError: images or labels are of another type or shape.
    """

    images: Tensor
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"images is {self.images.dtype} of shape {tuple(self.images.shape)}; it must be uint8 (N, C, H, W):"
                " images in [0, 1] become it by (images * 255).byte()"
            )
        if self.labels is not None and self.labels.shape != (len(self.images),):
            raise ValueError(f"labels has the shape {tuple(self.labels.shape)}; it must be {(len(self.images),)}")

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the images and labels at `indices`."""
        here = to_device(indices, self.images.device)
        return self.images[here], None if self.labels is None else self.labels[indices]
