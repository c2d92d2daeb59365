"""What a metric is.

A metric is a frozen dataclass whose fields are its options. It compares the features of samples with those of real
images, and says which other real images, put in the samples' place, give its floor: what a perfect model would score.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from diffusion_core.choices import Choice
from diffusion_core.metrics.features import Features

# How many samples there are, and how many of them were compared with as many real images.
COUNTS = ("samples", "compared")


@dataclass(frozen=True, eq=False)
class RealFeatures:
    """The real images' features, and two seeded halves of each split that have no image in common.

    Attributes:
        train: (n, d), every training image: what a model could have memorised.
        train_halves: the first is what samples are compared with, the second stands in for samples.
        validation_halves: the same of images that no model was trained on.
    """

    train: Features
    train_halves: tuple[Features, Features]
    validation_halves: tuple[Features, Features]

    @classmethod
    def split(cls, train: Features, validation: Features, half_size: int, random: np.random.Generator) -> Self:
        """Draw the halves, of at most `half_size` images each."""
        return cls(train, _halves(train, half_size, random), _halves(validation, half_size, random))


class Metric(Choice, ABC):
    """Base of every metric.

    Attributes:
        figures: every name that `beside_floor` gives.
    """

    figures: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls) -> None:
        if "figures" not in vars(cls):
            raise TypeError(f"{cls.__name__} must name its figures, as the other metrics do")

    @abstractmethod
    def compute(self, samples: Features, real: RealFeatures) -> dict[str, float]:
        """Measure the samples' features, (m, d), m >= 2; the names are the keys of metrics/evaluate.json.

        Raises:
            UserError: there are too few samples or real images for this metric.
        """

    def stand_ins(self, real: RealFeatures) -> Features:
        """Return the real images that are measured in the samples' place for the floor."""
        return real.train_halves[1]

    def beside_floor(self, samples: Features, real: RealFeatures) -> dict[str, float]:
        """Measure the samples, and as many stand-ins where there are as many: each name again with `_floor`."""
        floors = self.compute(self.stand_ins(real)[: len(samples)], real)
        figures: dict[str, float] = {}
        for name, value in self.compute(samples, real).items():
            figures |= {name: value, f"{name}_floor": floors[name]}
        return figures


def _halves(features: Features, half_size: int, random: np.random.Generator) -> tuple[Features, Features]:
    size = min(len(features) // 2, half_size)
    order = random.permutation(len(features))
    return features[order[:size]], features[order[size : 2 * size]]
