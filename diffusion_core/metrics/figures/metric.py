"""The interface of a metric.

A metric is a frozen dataclass; its fields are its options. It compares samples with real images. Its floor is its value
for other real images instead of samples, the score of a perfect model. Its ceiling is its value for noise.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from diffusion_core.choices import Choice
from diffusion_core.metrics.estimate import Estimate
from diffusion_core.metrics.features import Features, Images

# The number of samples, and the number of measured samples.
COUNTS = ("sample_count", "compared_count")

# Which samples are used, bool (m,).
Kept: TypeAlias = NDArray[np.bool_]
# Values of a metric by name, as a function of that.
Values: TypeAlias = Callable[[Kept], dict[str, float]]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Images with their features.

    Attributes:
        features: (n, d).
        pixels: returns the images at some indices, uint8 (k, H, W, C).
        labels: indices of classes, int64 (n,), or None if there are no classes.
    """

    features: Features
    pixels: Callable[[NDArray[np.intp]], Images]
    labels: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.features)

    def take(self, rows: NDArray[np.intp]) -> Self:
        """Return the images at these rows."""
        labels = None if self.labels is None else self.labels[rows]
        return type(self)(self.features[rows], lambda few: self.pixels(rows[few]), labels)


@dataclass(frozen=True, eq=False)
class Real:
    """The real images, and two disjoint seeded halves of each split.

    Attributes:
        train: all training images.
        train_halves: the first half is compared with samples; the second replaces the samples for the floor.
        validation_halves: two halves of the images that no model was trained on.
    """

    train: Pictures
    train_halves: tuple[Pictures, Pictures]
    validation_halves: tuple[Pictures, Pictures]

    @classmethod
    def split(cls, train: Pictures, validation: Pictures, half_size: int, random: np.random.Generator) -> Self:
        """Select the halves at random, with at most `half_size` images each."""
        return cls(train, _halves(train, half_size, random), _halves(validation, half_size, random))


class Metric(Choice, ABC):
    """Base class of all metrics.

    Attributes:
        figures: the names of its values, without those of floors, ceilings and intervals.
    """

    figures: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls) -> None:
        if "figures" not in vars(cls):
            raise TypeError(f"{cls.__name__} must list the names of its values, as the other metrics do")

    @abstractmethod
    def against(self, real: Real) -> Callable[[Pictures], Values]:
        """Return the metric against these real images: a function of samples, m >= 3.

        It returns the values of the metric by name, as a function of which samples are used. So what does not depend on
        the samples is computed once, and what does not depend on the choice of them once for each set of samples.

        Raises:
            UserError: there are too few samples or real images for this metric.
        """

    def compute(self, samples: Pictures, real: Real) -> dict[str, float]:
        """Return the values of the metric by name for all samples; see `against`."""
        return self.against(real)(samples)(np.full(len(samples), True))

    def derived(self, estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:  # noqa: ARG002 - most derive nothing
        """Return what follows from the metric's estimates, by name.

        Raises:
            UserError: the real images allow no such value.
        """
        return {}

    def stand_ins(self, real: Real) -> Pictures:
        """Return the real images that replace the samples for the floor."""
        return real.train_halves[1]


def prefixed(extractor: str, metric: str) -> str:
    """Return the name of a metric with the features of an extractor; the domain's own has no name."""
    return f"{extractor}_{metric}" if extractor else metric


def _halves(pictures: Pictures, half_size: int, random: np.random.Generator) -> tuple[Pictures, Pictures]:
    size = min(len(pictures) // 2, half_size)
    order = random.permutation(len(pictures))
    return pictures.take(order[:size]), pictures.take(order[size : 2 * size])
