"""Images that are the same picture: with equal pixels, or nearly so after another compression or scaling.

A perceptual hash, dHash (Krawetz 2013, "Kind of like that"), finds pairs that may be; their pixels decide.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image

# Bits of two hashes that may differ. One of `BANDS` equal parts of the hashes is then equal.
MOST_BITS = 7
BANDS = MOST_BITS + 1
BITS = 64
# Images whose pixels differ by less are the same, however low their contrast.
GRAY_LEVEL = 1.0
# Among more images than this with an equal part of the hash, only those with the nearest hashes are compared.
LARGEST_BUCKET = 4_000
# Rows of a table of distances that are computed at once.
BLOCK = 256
# Pairs whose averages are compared at once.
PAIRS = 16_384

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
    files: Sequence[str],
    hashes: Sequence[int],
    digests: Sequence[str],
    pixels: Callable[[int], Pixels],
    distance: float,
) -> npt.NDArray[np.int64]:
    """Return the first image of the group of each: near-duplicates, and near-duplicates of these, share one.

    Args:
        files: sha256 of the file of each image; all parts of a file are in one group.
        hashes: the perceptual hash of each image.
        digests: sha256 of the pixels of each image.
        pixels: returns the pixels of an image by its number.
        distance: see `are_near`.
    """
    # Of several parts of a picture, those without contrast are equal in many files, and say nothing of them.
    parts = Counter(files)
    flat = {n for n, file in enumerate(files) if parts[file] > 1 and float(pixels(n).std()) <= GRAY_LEVEL}
    joined = _Groups(len(files))
    of_file: dict[str, int] = {}
    of_pixels: dict[str, int] = {}
    for number, (file, digest) in enumerate(zip(files, digests, strict=True)):
        joined.join(of_file.setdefault(file, number), number)
        if number not in flat:
            joined.join(of_pixels.setdefault(digest, number), number)
    distinct = np.array([*of_pixels.values()], np.int64)
    thumbnails = _Thumbnails(pixels, distance)
    for block in _candidates(np.array([hashes[number] for number in distinct], np.uint64)):
        for one, other in thumbnails.alike(distinct[block]).tolist():
            # What is joined already, perhaps by others, is not compared again.
            if joined.differ(one, other) and are_near(pixels(one), pixels(other), distance):
                joined.join(one, other)
    return joined.numbers()


class _Groups:
    """Numbers that are joined to groups: union by the smaller number, with path halving."""

    def __init__(self, count: int) -> None:
        self._parents = [*range(count)]

    def _root(self, number: int) -> int:
        parents = self._parents
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    def differ(self, one: int, other: int) -> bool:
        """Return whether two numbers are in different groups."""
        return self._root(one) != self._root(other)

    def join(self, one: int, other: int) -> None:
        """Make one group of those of two numbers."""
        low, high = sorted((self._root(one), self._root(other)))
        self._parents[high] = low

    def numbers(self) -> npt.NDArray[np.int64]:
        """Return the smallest number of the group of each."""
        return np.array([self._root(number) for number in range(len(self._parents))], np.int64)


class _Thumbnails:
    """Averages of images, which keep pairs apart that are far from near-duplicates.

    By Jensen's inequality, averages over cells differ no more than pixels, as root mean squares.
    """

    def __init__(self, pixels: Callable[[int], Pixels], distance: float) -> None:
        self._pixels = pixels
        self._distance = distance
        self._known: dict[int, tuple[npt.NDArray[np.float32], float]] = {}

    def alike(self, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return those of pairs, (n, 2), that may be near-duplicates."""
        found = [pairs[start : start + PAIRS][self._are_alike(pairs[start : start + PAIRS])]
                 for start in range(0, len(pairs), PAIRS)]  # fmt: skip
        return np.concatenate(found) if found else pairs

    def _are_alike(self, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        numbers, places = np.unique(pairs, return_inverse=True)
        known = [self._of(number) for number in numbers.tolist()]
        cells = np.stack([each for each, _ in known])
        contrasts = np.array([contrast for _, contrast in known])
        one, other = places.reshape(pairs.shape).T
        differences = np.sqrt(np.mean((cells[one] - cells[other]) ** 2, axis=1))
        allowed = np.maximum(GRAY_LEVEL, self._distance * np.maximum(contrasts[one], contrasts[other]))
        # The averages are rounded.
        return np.asarray(differences <= allowed + GRAY_LEVEL)

    def _of(self, number: int) -> tuple[npt.NDArray[np.float32], float]:
        if number not in self._known:
            pixels = self._pixels(number)
            planes = [
                Image.fromarray(plane).resize((8, 8), Image.Resampling.BOX) for plane in np.moveaxis(pixels, -1, 0)
            ]
            cells = np.stack([np.asarray(plane, np.float32) for plane in planes]).ravel()
            self._known[number] = cells, float(pixels.std())
        return self._known[number]


def _candidates(hashes: npt.NDArray[np.uint64]) -> Iterator[npt.NDArray[np.int64]]:
    """Yield, in blocks (n, 2), the pairs of images whose hashes differ by at most `MOST_BITS` bits, each once.

    In a part with more than `LARGEST_BUCKET` images, as among millions, only neighbours are compared. Then pairs that
    differ in few bits may be missed.
    """
    width = BITS // BANDS
    mask = np.uint64(2**width - 1)
    parts = [(hashes >> np.uint64(band * width)) & mask for band in range(BANDS)]
    for band, part in enumerate(parts):
        # Equal hashes are neighbours within a part.
        order = np.lexsort((hashes, part))
        starts = np.flatnonzero(np.diff(part[order], prepend=np.uint64(2**width), append=np.uint64(2**width)))
        for start, stop in pairwise(starts):
            bucket = order[start:stop]
            reach = len(bucket) if len(bucket) <= LARGEST_BUCKET else 2
            for first in range(0, len(bucket), BLOCK):
                rows, columns = bucket[first : first + BLOCK], bucket[first : first + BLOCK + reach]
                near = np.bitwise_count(hashes[rows, None] ^ hashes[None, columns]) <= MOST_BITS
                one, other = np.nonzero(np.triu(near, 1))
                pairs = np.sort(np.stack([rows[one], columns[other]], axis=1), axis=1)
                # A pair comes with the first of its equal parts.
                came = np.zeros(len(pairs), bool)
                for earlier in parts[:band]:
                    came |= earlier[pairs[:, 0]] == earlier[pairs[:, 1]]
                if not came.all():
                    yield pairs[~came]


def are_near(one: Pixels, other: Pixels, distance: float) -> bool:
    """Return whether two images, uint8 (H, W, C), are near-duplicates.

    The root mean square of their difference is then at most one gray level, or `distance` times the greater of the
    standard deviations of their pixels.
    """
    a, b = one.astype(np.float32), other.astype(np.float32)
    difference = float(np.sqrt(np.mean((a - b) ** 2)))
    return difference <= max(GRAY_LEVEL, distance * float(max(a.std(), b.std())))
