"""Does the model copy its training images?

Validation images are as near to the training images as new images of this sort are. A sample that is nearer to its
nearest training image than all but the share q of them is suspicious; a model that invents gives about q of such
samples, one that copies gives nearly all. (The comparison of a model's and held-out images' distances to the training
set is that of Meehan, Chaudhuri & Dasgupta 2020, https://arxiv.org/abs/2004.05675.)
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

    Every training image counts, whichever half it is in. The quantile is taken of one half of the validation images;
    the other half stands in for samples, so that the floor is about q by construction.

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
        usual = nearest(real.validation_halves[0], real.train).distances[:, 0]
        near = nearest(samples, real.train).distances[:, 0] <= np.quantile(usual, self.quantile)
        return {"memorisation": float(near.mean())}

    def stand_ins(self, real: RealFeatures) -> Features:
        return real.validation_halves[1]
