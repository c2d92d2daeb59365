"""The kernel distance, Binkowski et al. 2018 (https://arxiv.org/abs/1801.01401); with Inception's features, KID.

With k(x, y) = (x . y / d + 1)^3, the unbiased estimate of the squared maximum mean discrepancy of X, m, and Y, n, is

    MMD^2 = 1/(m(m-1)) sum_{i != j} k(x_i, x_j) + 1/(n(n-1)) sum_{i != j} k(y_i, y_j) - 2/(mn) sum_{i, j} k(x_i, y_j)

KID is often the mean of this estimate over random subsets. All images at once have the same mean and less variance.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from diffusion_core.metrics.features import Features
from diffusion_core.metrics.figures.metric import Kept, Metric, Pictures, Real


@dataclass(frozen=True)
class Kernel(Metric):
    """MMD^2 between samples and half of the training images.

    The estimate is unbiased for every number of images. For two sets from one distribution its mean is 0, so it may be
    slightly negative.
    """

    figures: ClassVar[tuple[str, ...]] = ("kernel",)

    kind: Literal["kernel"] = "kernel"

    def over(self, samples: Pictures, real: Real) -> Callable[[Kept], dict[str, float]]:
        """Return `kernel`, which may be negative, as a function of the samples."""
        mmd = squared_mmd_to(samples.features, real.train_halves[0].features)
        return lambda kept: {"kernel": mmd(kept)}


def squared_mmd_to(x: Features, y: Features) -> Callable[[Kept], float]:
    """Return the unbiased estimate of MMD^2 for some rows of x, (m, d), and all of y, (n, d), as a function of them."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    within, across, others = _kernel(x, x), _kernel(x, y).mean(axis=1), _mean_off_diagonal(_kernel(y, y))
    np.fill_diagonal(within, 0.0)

    def mmd(kept: Kept) -> float:
        count = int(kept.sum())
        pairs = within[kept].sum(axis=0)[kept].sum()
        return float(pairs / (count * (count - 1)) + others - 2.0 * across[kept].mean())

    return mmd


def squared_mmd(x: Features, y: Features) -> float:
    """Return the unbiased estimate of MMD^2 for x, (m, d), and y, (n, d), m, n >= 2; it may be negative."""
    return squared_mmd_to(x, y)(np.full(len(x), True))


def _kernel(x: Features, y: Features) -> NDArray[np.float64]:
    kernel: NDArray[np.float64] = (x @ y.T / x.shape[1] + 1.0) ** 3
    return kernel


def _mean_off_diagonal(matrix: NDArray[np.float64]) -> float:
    count = len(matrix)
    return float(matrix.sum() - np.trace(matrix)) / (count * (count - 1))
