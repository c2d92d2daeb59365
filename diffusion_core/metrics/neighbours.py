"""Nearest neighbours by brute force, a block of rows at a time.

Distances are taken directly and not by |x|^2 + |y|^2 - 2 x.y, which loses the digits that tell a copy from its
original.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from diffusion_core.metrics.features import Features, spans

BLOCK = 512


class Neighbours(NamedTuple):
    """The k nearest of each point, nearest first: Euclidean distances and row numbers, both (n, k)."""

    distances: NDArray[np.float64]
    indices: NDArray[np.intp]


def nearest(points: Features, among: Features, k: int = 1) -> Neighbours:
    """Return the `k` rows of `among`, (m, d), that are nearest to each row of `points`, (n, d); 1 <= k <= m."""
    distances, indices = [], []
    for span in spans(len(points), BLOCK):
        block = cdist(points[span], among)
        few = np.argpartition(block, k - 1, axis=1)[:, :k]
        order = np.argsort(np.take_along_axis(block, few, axis=1), axis=1, kind="stable")
        few = np.take_along_axis(few, order, axis=1)
        indices.append(few)
        distances.append(np.take_along_axis(block, few, axis=1))
    return Neighbours(np.concatenate(distances), np.concatenate(indices))


def within_reach(points: Features, centres: Features, radii: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return for each of `points`, (n, d), whether it lies in any ball about `centres`, (m, d), of `radii`, (m,)."""
    return np.concatenate([(cdist(points[span], centres) <= radii).any(axis=1) for span in spans(len(points), BLOCK)])
