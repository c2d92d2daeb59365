"""Images that are the same picture: with equal pixels, or nearly so after another compression or scaling.

A perceptual hash, dHash (Krawetz 2013, "Kind of like that"), finds pairs that may be; their pixels decide.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Bits of two hashes that may differ. One of `BANDS` equal parts of the hashes is then equal.
MOST_BITS = 7
BANDS = MOST_BITS + 1
BITS = 64
# Images whose pixels differ by less are the same, however low their contrast.
GRAY_LEVEL = 1.0
# Among that many images with an equal part of the hash, only those with the nearest hashes are compared.
LARGEST_BUCKET = 4_000
# Rows of a table of distances that are computed at once.
BLOCK = 256

Pixels = npt.NDArray[np.uint8]


def perceptual_hash(pixels: Pixels) -> int:
    """Return the 64 bits of dHash: whether each of 8 x 8 cells is brighter than the one to its right.

    Args:
        pixels: uint8 (H, W, C).
    """
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[pixels.shape[-1]]
    image = Image.fromarray(pixels[..., 0] if mode == "L" else pixels, mode)
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    return int.from_bytes(np.packbits(small[:, :-1] > small[:, 1:]).tobytes(), "big")


def groups(
    hashes: Sequence[int], digests: Sequence[str], pixels: Callable[[int], Pixels], distance: float
) -> npt.NDArray[np.int64]:
    """Return the number of the group of each image: near-duplicates, and near-duplicates of these, share one.

    Args:
        hashes: the perceptual hash of each image.
        digests: sha256 of the pixels of each image.
        pixels: returns the pixels of an image by its number.
        distance: see `are_near`.
    """
    first: dict[str, int] = {}
    pairs = [(first.setdefault(digest, number), number) for number, digest in enumerate(digests)]
    distinct = np.array([*first.values()], np.int64)
    known = np.array([hashes[number] for number in distinct], np.uint64)
    for one, other in _candidates(known):
        pair = int(distinct[one]), int(distinct[other])
        if are_near(pixels(pair[0]), pixels(pair[1]), distance):
            pairs.append(pair)
    rows, columns = zip(*pairs, strict=True) if pairs else ((), ())
    graph = coo_array((np.ones(len(pairs), bool), (rows, columns)), shape=(len(hashes), len(hashes)))
    _, labels = connected_components(graph, directed=False)
    return np.asarray(labels, np.int64)


def _candidates(hashes: npt.NDArray[np.uint64]) -> list[tuple[int, int]]:
    """Return the pairs of images whose hashes differ by at most `MOST_BITS` bits."""
    found: set[tuple[int, int]] = set()
    width = BITS // BANDS
    for band in range(BANDS):
        part = (hashes >> np.uint64(band * width)) & np.uint64(2**width - 1)
        # Equal hashes are neighbours within a part.
        order = np.lexsort((hashes, part))
        starts = np.flatnonzero(np.diff(part[order], prepend=np.uint64(2**width), append=np.uint64(2**width)))
        for start, stop in pairwise(starts):
            bucket = order[start:stop]
            if len(bucket) > LARGEST_BUCKET:
                found.update(_near_pairs(hashes, bucket[:-1, None], bucket[1:, None]))
                continue
            for first in range(0, len(bucket), BLOCK):
                rows = bucket[first : first + BLOCK, None]
                found.update(
                    _near_pairs(hashes, rows, np.broadcast_to(bucket[first:], (len(rows), len(bucket) - first)))
                )
    return sorted(found)


def _near_pairs(
    hashes: npt.NDArray[np.uint64], one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]
) -> set[tuple[int, int]]:
    near = np.nonzero(np.bitwise_count(hashes[one] ^ hashes[other]) <= MOST_BITS)
    a, b = np.broadcast_to(one, other.shape)[near], other[near]
    pairs = np.stack([np.minimum(a, b), np.maximum(a, b)], axis=1)[a != b]
    return {(int(first), int(second)) for first, second in pairs.tolist()}


def are_near(one: Pixels, other: Pixels, distance: float) -> bool:
    """Return whether two images, uint8 (H, W, C), are near-duplicates.

    The root mean square of their difference is then at most `distance` times the standard deviation of the first's
    pixels, or one gray level.
    """
    a, b = one.astype(np.float32), other.astype(np.float32)
    difference = float(np.sqrt(np.mean((a - b) ** 2)))
    return difference <= max(GRAY_LEVEL, distance * float(a.std()))
