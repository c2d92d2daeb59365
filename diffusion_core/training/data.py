"""The images of a training: how they are looked up, in which order, and how they come to the device."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from diffusion_core.randomness import generator
from diffusion_core.runtime.device import to_device


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


def batch_indices(seed: int, step: int, batch_size: int, count: int) -> Tensor:
    """Return the indices, (batch_size,), of the images that step number `step` (from 0) trains on.

    The epochs' permutations of `count` images follow one another without a gap, so a batch may span two of them.
    """
    positions = torch.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // count
    indices = torch.empty_like(positions)
    for epoch in sorted(set(epochs.tolist())):
        here = epochs == epoch
        indices[here] = _permutation(seed, epoch, count)[positions[here] % count]
    return indices


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> Tensor:
    return torch.randperm(count, generator=generator(seed, epoch, "order"))


# Share of the device's free memory that a dataset may take.
RESIDENT_SHARE = 0.25

Batch = tuple[Tensor, Tensor | None]
Item = TypeVar("Item")


def resident(data: TrainingData, device: torch.device) -> TrainingData:
    """Return the data itself, or a copy on the device where that is a GPU and a quarter of its free memory suffices.

    On the device a batch is picked without a copy through the host. On a CPU there is nothing to gain: a mapped file
    that fits into memory stays there by itself.
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
    data: TrainingData, indices: Callable[[int], Tensor], steps: range, device: torch.device
) -> Iterator[Batch]:
    """Yield the images, uint8 (B, C, H, W) on the device, and labels, int64 (B,) on the host, of each step.

    While a GPU works on a batch, a thread reads the next into pinned memory; it does nothing on the device. On a CPU it
    would only take cores away from the training, and there is nothing to read where the images lie on the device.

    Args:
        data: the images.
        indices: gives the indices of a step.
        steps: numbers of the steps.
        device: where images go.
    """

    def load(step: int) -> Batch:
        images, labels = data.batch(indices(step))
        return (images.pin_memory() if device.type == "cuda" and images.device.type == "cpu" else images), labels

    loaded = map(load, steps)
    there = device.type == "cpu" or (isinstance(data, TensorData) and data.images.device == device)
    for images, labels in loaded if there else prefetch(loaded):
        yield to_device(images, device), labels


def prefetch(items: Iterator[Item]) -> Iterator[Item]:
    """Yield the items; a thread makes the next one meanwhile."""
    with ThreadPoolExecutor(1, "prefetch") as maker:
        coming = maker.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = maker.submit(next, items, None)
            yield item
