"""Exact nearest neighbours, computed by blocks of rows.

Distances are computed directly. |x|^2 + |y|^2 - 2 x.y loses the digits that distinguish a copy from its original.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffusion_core.metrics.features import Features, spans

BLOCK = 512


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
    for span in spans(len(points), BLOCK):
        block = _distances(points[span], among)
        few = np.argpartition(block, k - 1, axis=1)[:, :k]
        order = np.argsort(np.take_along_axis(block, few, axis=1), axis=1, kind="stable")
        few = np.take_along_axis(few, order, axis=1)
        indices.append(few)
        distances.append(np.take_along_axis(block, few, axis=1))
    return Neighbours(np.concatenate(distances), np.concatenate(indices))


def within_reach(points: Features, centres: Features, radii: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return whether each of `points`, (n, d), is in a ball about one of `centres`, (m, d), with `radii`, (m,)."""
    blocks = (_distances(points[span], centres) for span in spans(len(points), BLOCK))
    return np.concatenate([(block <= radii).any(axis=1) for block in blocks])


def _distances(points: Features, others: Features) -> NDArray[np.float64]:
    # Imported here, because every command reads the names of the metrics, and few compute one.
    from scipy.spatial.distance import cdist

    found: NDArray[np.float64] = cdist(points, others)
    return found
