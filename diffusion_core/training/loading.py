"""From a dataset to batches on the device, one batch ahead of the training."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from diffusion_core.runtime.transfer import to_device
from diffusion_core.training.data import TensorData, TrainingData

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
    for images, labels in loaded if there else ahead(loaded):
        yield to_device(images, device), labels


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield the items; a thread makes the next one meanwhile."""
    with ThreadPoolExecutor(1, "ahead") as maker:
        coming = maker.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = maker.submit(next, items, None)
            yield item
