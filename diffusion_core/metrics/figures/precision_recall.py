"""Precision, recall, density and coverage: how real the samples are, and how much of the real images they cover.

The manifold of a set is the union of balls about its points, with radii to each point's k-th nearest neighbour.

Improved precision and recall are of Kynkäänniemi et al. 2019 (https://arxiv.org/abs/1904.06991), equations 1 and 2.
Precision is the share of samples inside the manifold of real images, recall the share of real images inside that of
samples.

Density and coverage are of Naeem et al. 2020 (https://arxiv.org/abs/2002.09797), equations 3 and 4. Density is the
number of real balls about a sample as a multiple of k; coverage is the share of real balls with a sample inside. Both
use balls of real images alone, so that single odd samples count less.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from diffusion_core.errors import UserError
from diffusion_core.metrics.estimate import Estimate
from diffusion_core.metrics.figures.metric import Kept, Metric, Pictures, Real, Values
from diffusion_core.metrics.neighbours import pairwise


@dataclass(frozen=True)
class PrecisionRecall(Metric):
    """Precision, recall and coverage, in [0, 1], and density, at least 0, of samples and half of the training images.

    Recall and coverage increase with the number of samples, so their floors use as many real images, if there are
    enough. `coverage_ratio`, coverage divided by its floor, is then about 1 for a perfect model.

    Attributes:
        neighbours: k, at least 1; a larger k widens both manifolds.
    """

    figures: ClassVar[tuple[str, ...]] = ("precision", "recall", "density", "coverage", "coverage_ratio")

    kind: Literal["precision_recall"] = "precision_recall"
    neighbours: int = 3

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise ValueError(f"neighbours is {self.neighbours}; it must be at least 1")

    def against(self, real: Real) -> Callable[[Pictures], Values]:
        """Return the four values as a function of samples.

        Raises:
            UserError: there are at most k samples or real images.
        """
        half, k = real.train_halves[0].features, self.neighbours
        self._check(k + 1, len(half))
        # The nearest neighbour of a point is that point, so the k-th is at index k.
        reach = np.partition(pairwise(half, half), k, axis=1)[:, k]

        def of(samples: Pictures) -> Values:
            self._check(len(samples), len(half))
            across, among = pairwise(samples.features, half), pairwise(samples.features, samples.features)
            inside = across <= reach
            balls = inside.sum(axis=1)

            def values(kept: Kept) -> dict[str, float]:
                self._check(int(kept.sum()), len(half))
                radii = np.partition(among[kept][:, kept], k, axis=1)[:, k]
                return {
                    "precision": float((balls[kept] > 0).mean()),
                    "recall": float((across[kept] <= radii[:, None]).any(axis=0).mean()),
                    "density": float(balls[kept].mean() / k),
                    "coverage": float(inside[kept].any(axis=0).mean()),
                }

            return values

        return of

    def derived(self, estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
        """Return `coverage_ratio`.

        Raises:
            UserError: the floor is 0.
        """
        coverage = estimates["coverage"]
        if not coverage.floor:
            raise UserError(
                "no two real images of data/prepared are near each other, so coverage has no floor: add images that"
                " are alike, or raise neighbours of precision_recall in evaluate.metrics"
            )
        return {"coverage_ratio": coverage.in_units_of(coverage.floor)}

    def _check(self, samples: int, real: int) -> None:
        if min(samples, real) <= self.neighbours:
            raise UserError(
                f"neighbours of precision_recall in evaluate.metrics is {self.neighbours}, which is too many for"
                f" {samples} samples and {real} real images: lower it or raise sample.count"
            )
