"""Exact nearest neighbours, computed by blocks of rows.

Distances are computed directly. |x|^2 + |y|^2 - 2 x.y loses the digits that distinguish a copy from its original.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion_core.metrics.features import Features, spans

# Distances of a block, in float64, take about 200 MB at most.
BLOCK_VALUES = 25_000_000


class Neighbours(NamedTuple):
    """The k nearest neighbours of each point, nearest first.

    Attributes:
        distances: Euclidean distances, (n, k).
        indices: row numbers, (n, k).
    """

    distances: NDArray[np.float64]
    indices: NDArray[np.intp]


def nearest(points: Features, among: Features, k: int = 1) -> Neighbours:
    """Return the `k` rows of `among`, (m, d), that are nearest to each row of `points`, (n, d); 1 <= k <= m."""
    distances, indices = [], []
    for span in spans(len(points), max(1, BLOCK_VALUES // max(1, len(among)))):
        block = pairwise(points[span], among)
        few = np.argpartition(block, k - 1, axis=1)[:, :k]
        order = np.argsort(np.take_along_axis(block, few, axis=1), axis=1, kind="stable")
        few = np.take_along_axis(few, order, axis=1)
        indices.append(few)
        distances.append(np.take_along_axis(block, few, axis=1))
    return Neighbours(np.concatenate(distances), np.concatenate(indices))


def pairwise(points: Features, others: Features) -> NDArray[np.float64]:
    """Return the Euclidean distance of each row of `points`, (n, d), to each of `others`, (m, d): (n, m)."""
    x, y = (torch.from_numpy(np.ascontiguousarray(each, dtype=np.float64)) for each in (points, others))
    found: NDArray[np.float64] = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    return found
