"""The split depends on pixels and fraction only, has the fraction asked for, and parts no near-duplicates."""

import hashlib
from itertools import pairwise
from math import sqrt

import numpy as np
import pytest

from diffusion_core.data.splits import across, split_of, splits

DIGESTS = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(20_000)]
# Groups of one to four images, which do not lie side by side.
GROUPS = np.random.default_rng(0).permutation(np.repeat(np.arange(8_000), np.tile([1, 2, 3, 4], 2_000)))
TOLD = [None] * len(DIGESTS)


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


def test_without_near_duplicates_the_digest_of_an_image_decides_alone() -> None:
    alone = np.arange(len(DIGESTS))
    assert splits(TOLD, DIGESTS, alone, 0.3) == [split_of(digest, 0.3) for digest in DIGESTS]


def test_a_group_is_in_one_split() -> None:
    found = splits(TOLD, DIGESTS, GROUPS, 0.3)
    assert {*found} == {"train", "validation"}
    assert across(GROUPS.tolist(), found) == 0
    # The control: each by its own digest, most of the larger groups would be parted.
    parted = across(GROUPS.tolist(), [split_of(digest, 0.3) for digest in DIGESTS])
    assert parted > 2_000


def test_the_split_of_a_group_does_not_depend_on_the_order_of_its_images() -> None:
    order = np.random.default_rng(1).permutation(len(DIGESTS))
    # The numbers of groups depend on the order too.
    numbers = np.random.default_rng(2).permutation(8_000)
    mixed = splits(TOLD, [DIGESTS[each] for each in order], numbers[GROUPS[order]], 0.3)
    straight = splits(TOLD, DIGESTS, GROUPS, 0.3)
    assert mixed == [straight[each] for each in order]


def test_a_larger_fraction_only_adds_groups() -> None:
    found = [splits(TOLD, DIGESTS, GROUPS, fraction) for fraction in (0.1, 0.2, 0.7)]
    chosen = [{number for number, split in enumerate(each) if split == "validation"} for each in found]
    assert all(smaller < larger for smaller, larger in pairwise(chosen))


def test_where_the_source_names_validation_nothing_else_is_of_it() -> None:
    told = ["validation", None, "train", "test", None]
    # All in one group, and digests that are of validation by the fraction.
    found = splits(told, ["0" * 64] * 5, np.zeros(5, np.int64), None)
    assert found == ["validation", "train", "train", "test", "train"]
    # The validation and the test image have near-duplicates to train on.
    assert across([0] * 5, found) == 2


def test_where_the_source_names_test_images_alone_the_others_are_parted_by_the_fraction() -> None:
    told = ["test" if number % 5 == 0 else [None, "train"][number % 2] for number in range(len(DIGESTS))]
    found = splits(told, DIGESTS, np.arange(len(DIGESTS)), 0.3)
    assert [split == "test" for split in found] == [number % 5 == 0 for number in range(len(DIGESTS))]
    share = found.count("validation") / (len(found) - found.count("test"))
    assert abs(share - 0.3) < 4 * sqrt(0.3 * 0.7 / len(found))


def test_across_counts_images_of_validation_and_test_whose_group_is_trained() -> None:
    group = np.array([0, 0, 0, 1, 1, 2, 2, 3])
    split = ["train", "validation", "test", "train", "train", "validation", "test", "validation"]
    assert across(group, split) == 2
