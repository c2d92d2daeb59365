"""A metric with its uncertainty: the interval of the grouped jackknife.

The samples are cut into G groups, and the metric is computed again without each of them. With t_g these values,

    se^2 = (G - 1)/G sum_g (t_g - mean t)^2                                             (Efron 1982, section 3.2)

and the 95% interval is the value +- the 97.5% quantile of Student's t with G - 1 degrees of freedom, times se. It is
the uncertainty that comes from the choice of the samples: the mean over other seeds of the same model lies in it,
against the same real images. Bootstrap samples, with their copies, would change distances to nearest neighbours.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict

GROUPS = 20
LEVEL = 0.95
# More than the accuracy of a metric, and less than machines differ by.
DIGITS = 6
# What is written beside the value of each metric.
SUFFIXES = ("", "_low", "_high", "_floor", "_ceiling")


class Estimate(BaseModel):
    """A metric of samples.

    Attributes:
        value: of all measured samples.
        replicates: the values without each of the groups.
        floor: the value for real images in place of the samples.
        ceiling: the value for noise in place of the samples.
    """

    model_config = ConfigDict(frozen=True)

    value: float
    replicates: tuple[float, ...]
    floor: float
    ceiling: float

    @property
    def half_width(self) -> float:
        """Half of the 95% interval."""
        return half_width(self.replicates)

    def named(self, name: str) -> dict[str, float]:
        """Return value, interval, floor and ceiling by name: `<name>`, `<name>_low` and so on."""
        values = (self.value, self.value - self.half_width, self.value + self.half_width, self.floor, self.ceiling)
        return {f"{name}{suffix}": _rounded(value) for suffix, value in zip(SUFFIXES, values, strict=True)}

    def rounded(self) -> Self:
        """Return the estimate with six digits of each number, which hides what machines differ by."""
        return self._each(_rounded)

    def in_units_of(self, unit: float) -> Self:
        """Return the estimate as a multiple of `unit`, which is greater than 0."""
        return self._each(lambda value: value / unit)

    def _each(self, change: Callable[[float], float]) -> Self:
        return type(self)(
            value=change(self.value),
            replicates=tuple(map(change, self.replicates)),
            floor=change(self.floor),
            ceiling=change(self.ceiling),
        )


def half_width(replicates: Sequence[float]) -> float:
    """Return half of the 95% interval of a metric with these values without each of G >= 2 groups."""
    # Imported here, because every command reads the names of the metrics, and few compute one.
    from scipy.special import stdtrit

    groups = np.asarray(replicates, np.float64)
    count = len(groups)
    error = math.sqrt((count - 1) / count * float(np.square(groups - groups.mean()).sum()))
    return float(stdtrit(count - 1, (1 + LEVEL) / 2)) * error


def difference(one: Estimate, other: Estimate) -> tuple[float, float]:
    """Return the difference of two metrics that were measured of the same seeds, and half of its 95% interval.

    The same seed makes like images of two models, so their errors go together, and the difference of each pair of
    replicates has less variance than its parts.
    """
    pairs = zip(one.replicates, other.replicates, strict=True)
    return one.value - other.value, half_width([first - second for first, second in pairs])


def flat(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    """Return all values by name, as metrics/evaluate.json has them."""
    return {name: value for metric, each in estimates.items() for name, value in each.named(metric).items()}


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
