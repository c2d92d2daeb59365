"""Measures whether the model copies its training images.

The limit is the quantile q of the validation images' distances to their nearest training images. About a share q of
the samples of a model that does not copy is within the limit; of a model that copies, nearly all. Meehan, Chaudhuri &
Dasgupta 2020 (https://arxiv.org/abs/2004.05675) compare samples and held-out images in this way.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from diffusion_core.metrics.features import Features
from diffusion_core.metrics.figures.metric import Metric, RealFeatures
from diffusion_core.metrics.neighbours import nearest


@dataclass(frozen=True)
class Memorisation(Metric):
    """The share of samples, in [0, 1], as near to a training image as the nearest q of validation images.

    It uses all training images. The quantile is that of one half of the validation images. The other half gives the
    floor, which is about q by construction.

    Attributes:
        quantile: q, in (0, 1).
    """

    figures: ClassVar[tuple[str, ...]] = ("memorisation", "memorisation_floor")

    kind: Literal["memorisation"] = "memorisation"
    quantile: float = 0.05

    def __post_init__(self) -> None:
        if not 0.0 < self.quantile < 1.0:
            raise ValueError(f"quantile is {self.quantile}; it must lie between 0 and 1")

    def compute(self, samples: Features, real: RealFeatures) -> dict[str, float]:
        """Return `memorisation`, in [0, 1]."""
        usual = nearest(real.validation_halves[0], real.train).distances[:, 0]
        near = nearest(samples, real.train).distances[:, 0] <= np.quantile(usual, self.quantile)
        return {"memorisation": float(near.mean())}

    def stand_ins(self, real: RealFeatures) -> Features:
        """Return the second half of the validation images."""
        return real.validation_halves[1]
