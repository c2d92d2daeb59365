"""What the trainer asks of a dataset."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class TrainingData(Protocol):
    """Images that are looked up by index."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return images, uint8 (B, C, H, W), and labels, int64 (B,), or None where there are none."""
        ...


@dataclass(frozen=True)
class TensorData:
    """Images in memory: uint8 (N, C, H, W), with labels, int64 (N,), or without."""

    images: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the images and labels at `indices`."""
        return self.images[indices], None if self.labels is None else self.labels[indices]
