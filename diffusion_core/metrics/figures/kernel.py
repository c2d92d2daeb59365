"""The kernel distance, Binkowski et al. 2018 (https://arxiv.org/abs/1801.01401); with Inception's features, KID.

With k(x, y) = (x . y / d + 1)^3, the unbiased estimate of the squared maximum mean discrepancy of X and Y, m each, is

    MMD^2 = 1/(m(m-1)) sum_{i != j} [k(x_i, x_j) + k(y_i, y_j)] - 2/m^2 sum_{i, j} k(x_i, y_j)
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from diffusion_core.metrics.features import Features
from diffusion_core.metrics.figures.metric import Metric, RealFeatures


@dataclass(frozen=True)
class Kernel(Metric):
    """MMD^2 between samples and half of the training images, averaged over random subsets of both.

    The estimate is unbiased for every number of images. For two sets from one distribution its mean is 0, so it may be
    slightly negative.

    Attributes:
        subsets: number of pairs of random subsets, at least 1.
        subset_size: images per subset, at least 2; limited by the number of images.
        seed: seed of the subsets.
    """

    figures: ClassVar[tuple[str, ...]] = ("kernel", "kernel_floor")

    kind: Literal["kernel"] = "kernel"
    subsets: int = 50
    subset_size: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if self.subsets < 1:
            raise ValueError(f"subsets is {self.subsets}; it must be at least 1")
        if self.subset_size < 2:
            raise ValueError(f"subset_size is {self.subset_size}; it must be at least 2")

    def compute(self, samples: Features, real: RealFeatures) -> dict[str, float]:
        """Return `kernel`; it may be negative."""
        half = real.train_halves[0]
        size = min(self.subset_size, len(samples), len(half))
        random = np.random.default_rng(self.seed)
        estimates = [
            squared_mmd(
                samples[random.choice(len(samples), size, replace=False)],
                half[random.choice(len(half), size, replace=False)],
            )
            for _ in range(self.subsets)
        ]
        return {"kernel": float(np.mean(estimates))}


def squared_mmd(x: Features, y: Features) -> float:
    """Return the unbiased estimate of MMD^2 for x and y, (m, d) each, m >= 2; it may be negative."""
    size = len(x)
    x, y = x.astype(np.float64), y.astype(np.float64)
    within = _sum_off_diagonal(_kernel(x, x)) + _sum_off_diagonal(_kernel(y, y))
    return float(within / (size * (size - 1)) - 2.0 * _kernel(x, y).mean())


def _kernel(x: Features, y: Features) -> NDArray[np.float64]:
    kernel: NDArray[np.float64] = (x @ y.T / x.shape[1] + 1.0) ** 3
    return kernel


def _sum_off_diagonal(matrix: NDArray[np.float64]) -> float:
    return float(matrix.sum() - np.trace(matrix))
