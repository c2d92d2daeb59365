"""Which images a step sees: every image once an epoch, in an order made of (seed, epoch)."""

from functools import lru_cache

import torch
from torch import Tensor

from diffusion_core.randomness import generator


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
