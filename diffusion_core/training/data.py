"""Training images: access by index, and the copy to the device."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from diffusion_core.runtime.device import to_device


class TrainingData(Protocol):
    """Images with access by index."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return images, uint8 (B, C, H, W), and labels, int64 (B,), or None if there are no labels."""
        ...


@dataclass(frozen=True)
class TensorData:
    """Images in memory.

    Attributes:
        images: uint8 (N, C, H, W).
        labels: int64 (N,), on the host, or None.

    Raises:
        ValueError: the dtype or shape of images or labels differs.
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


@runtime_checkable
class ReadsAhead(Protocol):
    """Images on a disk."""

    def read_ahead(self, indices: Tensor) -> None:
        """Begin to read the images at `indices` into memory, and return."""
        ...


# Largest share of the device's free memory that a dataset may use.
RESIDENT_SHARE = 0.25

Batch = tuple[Tensor, Tensor | None]
Item = TypeVar("Item")


def resident(data: TrainingData, device: torch.device) -> TrainingData:
    """Return a copy on the device if that is a CUDA GPU and the copy fits into a quarter of its free memory.

    Otherwise return `data`. A batch of data on the device needs no copy from the host. On a CPU a copy has no benefit:
    the operating system caches a memory-mapped file.
    """
    if device.type != "cuda" or (isinstance(data, TensorData) and data.images.device == device):
        return data
    first, _ = data.batch(torch.zeros(1, dtype=torch.long))
    free, _ = torch.cuda.mem_get_info(device)
    if first.numel() * len(data) > RESIDENT_SHARE * free:
        return data
    parts = [data.batch(part) for part in torch.arange(len(data)).split(4096)]
    labels = [part for _, part in parts if part is not None]
    return TensorData(torch.cat([images.to(device) for images, _ in parts]), torch.cat(labels) if labels else None)


def batches(
    data: TrainingData,
    indices: Callable[[int], Tensor],
    steps: range,
    device: torch.device,
    ahead: Callable[[int], Tensor] | None = None,
) -> Iterator[Batch]:
    """Yield the images, uint8 (B, C, H, W) on the device, and labels, int64 (B,) on the host, of each step.

    While a GPU computes a step, a thread reads the next batch into pinned memory; the thread does not use the device.
    There is no thread on a CPU, where it would compete with training, or if the images are on the device.

    Args:
        data: the images.
        indices: returns the indices of a step.
        steps: the step numbers.
        device: the device of the images.
        ahead: returns the images to read from the disk before a step, of images that lie on one.
    """

    def load(step: int) -> Batch:
        if ahead is not None and isinstance(data, ReadsAhead) and len(coming := ahead(step)):
            data.read_ahead(coming)
        images, labels = data.batch(indices(step))
        return (images.pin_memory() if device.type == "cuda" and images.device.type == "cpu" else images), labels

    loaded = map(load, steps)
    there = device.type == "cpu" or (isinstance(data, TensorData) and data.images.device == device)
    for images, labels in loaded if there else prefetch(loaded):
        yield to_device(images, device), labels


def prefetch(items: Iterator[Item]) -> Iterator[Item]:
    """Yield the items; a thread computes the next item meanwhile."""
    with ThreadPoolExecutor(1, "prefetch") as maker:
        coming = maker.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = maker.submit(next, items, None)
            yield item
