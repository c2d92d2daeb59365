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
from diffusion_core.metrics.figures.metric import Kept, Metric, Pictures, Real, Values


@dataclass(frozen=True)
class Kernel(Metric):
    """MMD^2 between samples and half of the training images.

    The estimate is unbiased for every number of images. For two sets from one distribution its mean is 0, so it may be
    slightly negative.
    """

    figures: ClassVar[tuple[str, ...]] = ("kernel",)

    kind: Literal["kernel"] = "kernel"

    def against(self, real: Real) -> Callable[[Pictures], Values]:
        """Return `kernel`, which may be negative, as a function of samples."""
        mmd = squared_mmd_to(real.train_halves[0].features)

        def of(samples: Pictures) -> Values:
            found = mmd(samples.features)
            return lambda kept: {"kernel": found(kept)}

        return of


def squared_mmd_to(y: Features) -> Callable[[Features], Callable[[Kept], float]]:
    """Return the unbiased estimate of MMD^2 to y, (n, d), as a function of x, (m, d), and then of some rows of it."""
    others, real = _mean_off_diagonal(_kernel(y, y)), y

    def of(x: Features) -> Callable[[Kept], float]:
        within, across = _kernel(x, x), _kernel(x, real).mean(axis=1)
        np.fill_diagonal(within, 0.0)

        def mmd(kept: Kept) -> float:
            count = int(kept.sum())
            pairs = within[kept].sum(axis=0)[kept].sum()
            return float(pairs / (count * (count - 1)) + others - 2.0 * across[kept].mean())

        return mmd

    return of


def squared_mmd(x: Features, y: Features) -> float:
    """Return the unbiased estimate of MMD^2 for x, (m, d), and y, (n, d), m, n >= 2; it may be negative."""
    return squared_mmd_to(y)(x)(np.full(len(x), True))


def _kernel(x: Features, y: Features) -> NDArray[np.float64]:
    product = x.astype(np.float64) @ y.astype(np.float64).T
    kernel: NDArray[np.float64] = (product / x.shape[1] + 1.0) ** 3
    return kernel


def _mean_off_diagonal(matrix: NDArray[np.float64]) -> float:
    count = len(matrix)
    return float(matrix.sum() - np.trace(matrix)) / (count * (count - 1))
