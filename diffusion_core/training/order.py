"""The order of the training images: at random within each epoch, or within windows that a disk reads in long pieces."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from diffusion_core.randomness import generator

# Pieces of the dataset that a window is made of. More mix better: images of one class often lie side by side. Fewer are
# longer.
BLOCKS = 1024


@dataclass(frozen=True)
class Order:
    """The order of the images; each epoch is a permutation, and a function of (seed, epoch).

    With a window, an epoch cuts the dataset into blocks of images side by side. The blocks come in random order,
    `BLOCKS` of them are a window, and images are in random order within it. So images that are not in memory are read
    in pieces of a block, and only two windows need to be in memory.

    Attributes:
        seed: of all random numbers.
        count: images of the dataset, at least 1.
        window: images of a window, at least 1; None for the whole dataset.
    """

    seed: int
    count: int
    window: int | None = None

    def batch(self, step: int, size: int) -> Tensor:
        """Return the indices of the images of a step (from 0), int64 (size,); a batch may span epochs."""
        return self._at(_positions(step, size), mixed=True)

    def ahead(self, step: int, size: int, *, is_first: bool) -> Tensor:
        """Return the images to read before a step, so that each is read before its window begins, int64.

        Without windows, or with one that is the whole dataset, there are none.

        Args:
            step: from 0.
            size: images of a step.
            is_first: whether no step before it was asked for; then the images of its own window come too.
        """
        if self._length == self.count:
            return torch.empty(0, dtype=torch.int64)
        positions = _positions(step, size)
        if is_first:
            place = int(positions[0]) % self.count
            begin = int(positions[0]) - place % self._length
            positions = torch.cat([torch.arange(begin, int(positions[0]) + self._length), positions + self._length])
        else:
            positions = positions + self._length
        return self._at(positions, mixed=False)

    @property
    def _length(self) -> int:
        """Images of a window; the last one of an epoch may have fewer."""
        return self.count if self.window is None else min(self.window, self.count)

    def _at(self, positions: Tensor, *, mixed: bool) -> Tensor:
        """Return the images at positions in the concatenated epochs, or in the order in which they are read."""
        epochs, places = positions // self.count, positions % self.count
        windows = places // self._length
        indices = torch.empty_like(positions)
        for epoch, window in sorted({*zip(epochs.tolist(), windows.tolist(), strict=True)}):
            here = (epochs == epoch) & (windows == window)
            images = (_mixed if mixed else _read)(self, epoch, window)
            indices[here] = images[places[here] - window * self._length]
        return indices


def _positions(step: int, size: int) -> Tensor:
    return torch.arange(step * size, (step + 1) * size)


@lru_cache(maxsize=2)
def _mixed(order: Order, epoch: int, window: int) -> Tensor:
    """Return the images of a window in random order."""
    if order._length == order.count:
        return torch.randperm(order.count, generator=generator(order.seed, epoch, "order"))
    images = _read(order, epoch, window)
    return images[torch.randperm(len(images), generator=generator(order.seed, epoch, "order", window))]


@lru_cache(maxsize=2)
def _read(order: Order, epoch: int, window: int) -> Tensor:
    """Return the images of a window block by block."""
    start = window * order._length
    places = torch.arange(start, min(start + order._length, order.count))
    block = max(1, order._length // BLOCKS)
    blocks, shift = _blocks(order.seed, epoch, order.count, block)
    whole = len(blocks) * block
    # What is left over comes last; a random shift lets it be other images in each epoch.
    numbers = torch.where(places < whole, blocks[(places // block).clamp(max=len(blocks) - 1)] * block, whole)
    return (numbers + torch.where(places < whole, places % block, places - whole) + shift) % order.count


@lru_cache(maxsize=2)
def _blocks(seed: int, epoch: int, count: int, block: int) -> tuple[Tensor, int]:
    """Return the order of the whole blocks, and by how many images they are shifted."""
    random = generator(seed, epoch, "blocks")
    shift = int(torch.randint(count, (), generator=random))
    return torch.randperm(count // block, generator=random), shift
