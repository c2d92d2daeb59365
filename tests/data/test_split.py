"""The split depends on content and fraction only, and has the fraction asked for."""

import hashlib
from math import sqrt

import pytest

from diffusion_core.data.labels import split_of

DIGESTS = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(20_000)]


def validation(fraction: float) -> set[str]:
    return {digest for digest in DIGESTS if split_of(digest, fraction) == "validation"}


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.9])
def test_the_validation_split_has_its_fraction(fraction: float) -> None:
    deviation = sqrt(len(DIGESTS) * fraction * (1 - fraction))
    assert abs(len(validation(fraction)) - len(DIGESTS) * fraction) < 4 * deviation


def test_a_larger_fraction_only_adds() -> None:
    assert validation(0.0) == set()
    assert validation(0.1) < validation(0.2) < validation(0.7)


def test_the_ends_of_the_digests() -> None:
    assert split_of("0" * 64, 1e-9) == "validation"
    assert split_of("f" * 64, 0.999) == "train"
