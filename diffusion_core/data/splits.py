"""The split of each image: what its source says, or its pixels, with all near-duplicates on one side.

A copy of a training image among those to validate would hide that a model has learned images by heart.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from diffusion_core.data.manifest import Split


def split_of(digest: str, validation_fraction: float) -> Split:
    """Return the split of the image whose pixels have this sha256 (hexadecimal).

    The first 64 bits of the digest, as a fraction of 2^64, are uniform on [0, 1). So the split of an image does not
    depend on other images, its copies have the same split, and a greater `validation_fraction` only adds to validation.
    """
    return "validation" if int(digest[:16], 16) / 2**64 < validation_fraction else "train"


def splits(
    told: Sequence[Split | None],
    digests: Sequence[str],
    group: npt.NDArray[np.int64],
    validation_fraction: float | None,
) -> list[Split]:
    """Return the split of each image.

    Without a fraction the source decides, and images of which it says nothing are of training. Else the smallest digest
    of a group decides for all of its images that the source does not put into the test split.

    Args:
        told: the split that the source gives each image, or None.
        digests: sha256 of the pixels of each.
        group: number of the group of near-duplicates of each.
        validation_fraction: share of validation; None where the source names images of validation.
    """
    if validation_fraction is None:
        return [split or "train" for split in told]
    least: dict[int, str] = {}
    for number, digest in zip(group.tolist(), digests, strict=True):
        least[number] = min(digest, least.get(number, digest))
    by_group = {number: split_of(digest, validation_fraction) for number, digest in least.items()}
    return ["test" if split == "test" else by_group[number] for split, number in zip(told, group.tolist(), strict=True)]


def across(group: Sequence[int], split: Sequence[Split]) -> int:
    """Return how many images that are not of training have a near-duplicate that is."""
    trained = {number for number, each in zip(group, split, strict=True) if each == "train"}
    return sum(each != "train" and number in trained for number, each in zip(group, split, strict=True))
