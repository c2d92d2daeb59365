"""Improved precision and recall, Kynkäänniemi et al. 2019 (https://arxiv.org/abs/1904.06991), equations 1 and 2.

The manifold of a set is the union of balls about its points, with radii to each point's k-th nearest neighbour.
Precision, the share of samples inside the manifold of real images, measures fidelity. Recall, the share of real images
inside the manifold of samples, measures diversity.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from diffusion_core.errors import UserError
from diffusion_core.metrics.features import Features
from diffusion_core.metrics.figures.metric import Metric, RealFeatures
from diffusion_core.metrics.neighbours import nearest, within_reach


@dataclass(frozen=True)
class PrecisionRecall(Metric):
    """Precision and recall, in [0, 1], of samples and half of the training images.

    Recall increases with the number of samples, so its floor uses as many real images, if there are enough.

    Attributes:
        neighbours: k, at least 1; a larger k widens both manifolds.
    """

    figures: ClassVar[tuple[str, ...]] = ("precision", "precision_floor", "recall", "recall_floor")

    kind: Literal["precision_recall"] = "precision_recall"
    neighbours: int = 3

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise ValueError(f"neighbours is {self.neighbours}; it must be at least 1")

    def compute(self, samples: Features, real: RealFeatures) -> dict[str, float]:
        """Return `precision` and `recall`, in [0, 1].

        Raises:
            UserError: there are at most k samples or real images.
        """
        half = real.train_halves[0]
        if min(len(samples), len(half)) <= self.neighbours:
            raise UserError(
                f"neighbours of precision_recall in evaluate.metrics is {self.neighbours}, which is too many for"
                f" {len(samples)} samples and {len(half)} real images: lower it or raise sample.count"
            )
        return {
            "precision": float(within_reach(samples, half, self._radii(half)).mean()),
            "recall": float(within_reach(half, samples, self._radii(samples)).mean()),
        }

    def _radii(self, points: Features) -> NDArray[np.float64]:
        # k + 1, because the nearest neighbour of a point is that point.
        return nearest(points, points, self.neighbours + 1).distances[:, -1]
