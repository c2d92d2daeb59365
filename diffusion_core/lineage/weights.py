"""Compares the weights of two models, and the histories of their trainings, to the last bit."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open

# Values of a metric by the number of images.
History = Mapping[int, float]


@dataclass(frozen=True)
class Difference:
    """How the weights of two models differ.

    Attributes:
        tensors: number of tensors of both.
        different: names of those that differ, in a bit or in shape, or that one model does not have.
        largest: the largest difference of two numbers.
        where: name of its tensor, or empty.
    """

    tensors: int
    different: list[str]
    largest: float
    where: str


def compare_weights(one: Path, other: Path) -> Difference:
    """Compare two files of weights."""
    with safe_open(one, "np") as first, safe_open(other, "np") as second:
        names = [set(each.keys()) for each in (first, second)]
        different = sorted(names[0] ^ names[1])
        largest, where = 0.0, ""
        for name in sorted(names[0] & names[1]):
            pair = first.get_tensor(name), second.get_tensor(name)
            if pair[0].shape == pair[1].shape and pair[0].tobytes() == pair[1].tobytes():
                continue
            different.append(name)
            if pair[0].shape == pair[1].shape:
                apart = float(np.abs(pair[0].astype(np.float64) - pair[1]).max())
                if apart > largest:
                    largest, where = apart, name
    return Difference(len(names[0] | names[1]), different, largest, where)


def first_difference(one: Mapping[str, History], other: Mapping[str, History]) -> tuple[int, str] | None:
    """Return after how many images a metric of two trainings differs first, and which, or None if none does.

    What one of them has not logged is not compared.
    """
    apart = [
        (images, name)
        for name in one.keys() & other.keys()
        for images in one[name].keys() & other[name].keys()
        if not np.array_equal(one[name][images], other[name][images], equal_nan=True)
    ]
    return min(apart, default=None)
