"""The interface of a metric.

A metric is a frozen dataclass; its fields are its options. It compares the features of samples with those of real
images. Its floor is the value for other real images instead of samples, the score of a perfect model.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from diffusion_core.choices import Choice
from diffusion_core.metrics.features import Features

# The number of samples, and the number of measured samples.
COUNTS = ("samples", "compared")


@dataclass(frozen=True, eq=False)
class RealFeatures:
    """The features of the real images, and two disjoint seeded halves of each split.

    Attributes:
        train: features of all training images, (n, d).
        train_halves: the first half is compared with samples; the second replaces the samples for the floor.
        validation_halves: two halves of the images that no model was trained on.
    """

    train: Features
    train_halves: tuple[Features, Features]
    validation_halves: tuple[Features, Features]

    @classmethod
    def split(cls, train: Features, validation: Features, half_size: int, random: np.random.Generator) -> Self:
        """Select the halves at random, with at most `half_size` images each."""
        return cls(train, _halves(train, half_size, random), _halves(validation, half_size, random))


class Metric(Choice, ABC):
    """Base class of all metrics.

    Attributes:
        figures: the names in the result of `beside_floor`.
    """

    figures: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls) -> None:
        if "figures" not in vars(cls):
            raise TypeError(f"{cls.__name__} must list the names of its values, as the other metrics do")

    @abstractmethod
    def compute(self, samples: Features, real: RealFeatures) -> dict[str, float]:
        """Return the values of the metric by name, the keys of metrics/evaluate.json.

        Args:
            samples: features of the samples, (m, d), m >= 2.
            real: features of the real images.

        Raises:
            UserError: there are too few samples or real images for this metric.
        """

    def stand_ins(self, real: RealFeatures) -> Features:
        """Return the features of the real images that replace the samples for the floor."""
        return real.train_halves[1]

    def beside_floor(self, samples: Features, real: RealFeatures) -> dict[str, float]:
        """Return the values of the metric, and its floors as `<name>_floor`, from at most as many real images."""
        floors = self.compute(self.stand_ins(real)[: len(samples)], real)
        figures: dict[str, float] = {}
        for name, value in self.compute(samples, real).items():
            figures |= {name: value, f"{name}_floor": floors[name]}
        return figures


def _halves(features: Features, half_size: int, random: np.random.Generator) -> tuple[Features, Features]:
    size = min(len(features) // 2, half_size)
    order = random.permutation(len(features))
    return features[order[:size]], features[order[size : 2 * size]]
