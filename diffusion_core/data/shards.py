"""Shards `images-00000.npy`, ...: the pixels of the dataset in few large files.

A shard is a NumPy file (uint8, N x H x W x C), read by memory mapping.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from mmap import MADV_WILLNEED, PAGESIZE, mmap
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import ValidationError

from diffusion_core.errors import UserError
from diffusion_core.files import sha256_of

SHARD_BYTES = 256 * 2**20
# Bytes that are sooner read than skipped.
SMALL_GAP = 2**16
# Linux's own default for a disk.
READ_AHEAD = 2**17


def shard_file(folder: Path, number: int) -> Path:
    """Return the path of a shard."""
    return folder / f"images-{number:05d}.npy"


def images_per_shard(image_shape: tuple[int, int, int], shard_bytes: int = SHARD_BYTES) -> int:
    """Return how many images a full shard holds."""
    return max(1, shard_bytes // int(np.prod(image_shape)))


class ShardWriter:
    """Writes images of one shape into shards of at most `shard_bytes` of pixels, but at least one image.

    Only one shard is in memory, and its memory is allocated as images are added.

    Args:
        folder: the folder of the shards.
        image_shape: (H, W, C).
        digests: the sha256 of each shard that the folder has already; the next one follows them.
        shard_bytes: maximum bytes of pixels per shard.

    Attributes:
        digests: the sha256 of each shard.
        image_shape: (H, W, C).
    """

    def __init__(
        self,
        folder: Path,
        image_shape: tuple[int, int, int],
        digests: Sequence[str] = (),
        *,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self.digests = [*digests]
        self.image_shape = image_shape
        self._folder = folder
        self._pixels = np.empty((images_per_shard(image_shape, shard_bytes), *image_shape), np.uint8)
        self._rows = 0

    def append(self, image: npt.NDArray[np.uint8]) -> tuple[int, int]:
        """Add an image, uint8 (H, W, C); return its shard and row."""
        if self._rows == len(self._pixels):
            self.flush()
        self._pixels[self._rows] = image
        self._rows += 1
        return len(self.digests), self._rows - 1

    def flush(self) -> None:
        """Write the images added since the last shard and append its sha256 to `digests`; call it at the end."""
        if not self._rows:
            return
        file = shard_file(self._folder, len(self.digests))
        with file.open("w+b") as stream:
            np.save(stream, self._pixels[: self._rows])
            stream.flush()
            os.fsync(stream.fileno())
            stream.seek(0)
            self.digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
        self._rows = 0


def map_shard(folder: Path, number: int, image_shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Map a shard into memory, read-only.

    Raises:
        UserError: the file is missing or damaged, or has no uint8 images of `image_shape`.
    """
    file = shard_file(folder, number)
    with reading(file):
        pixels: npt.NDArray[np.uint8] = read_array(file)
        if pixels.shape[1:] != image_shape or pixels.dtype != np.uint8:
            raise ValueError(f"it holds {pixels.dtype} {pixels.shape} and not uint8 images of {image_shape}")
    return pixels


def read_array(file: Path) -> npt.NDArray[Any]:
    """Map an array in a NumPy file into memory, read-only.

    Objects, which would be unpickled, cannot be mapped. Nor can an array that is larger than its file.

    Raises:
        ValueError: it is not such a file.
        OSError: it is missing or cannot be read.
    """
    try:
        return np.lib.format.open_memmap(file, mode="r")
    except (EOFError, OverflowError, SyntaxError, TokenError) as error:
        raise ValueError(f"its header is wrong: {error}") from None


def read_ahead(pixels: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64]) -> None:
    """Let the system begin to read rows of a mapped shard from the disk into its cache.

    It does nothing where the array is not mapped.
    """
    if not isinstance(pixels, np.memmap) or not isinstance(pixels.base, mmap) or not len(rows):
        return
    size = pixels[0].nbytes
    ordered = np.unique(rows)
    # Rows with a small gap between them are read at once.
    ends = np.flatnonzero(np.diff(ordered) > max(1, SMALL_GAP // size))
    firsts, lasts = ordered[np.append(0, ends + 1)], ordered[np.append(ends, len(ordered) - 1)]
    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        start, stop = pixels.offset + first * size, pixels.offset + (last + 1) * size
        # In parts, because Linux reads no more for one call than a disk's own setting.
        for place in range(start - start % PAGESIZE, stop, READ_AHEAD):
            pixels.base.madvise(MADV_WILLNEED, place, min(READ_AHEAD, stop - place))


def check_shard(folder: Path, number: int, sha256: str) -> None:
    """Check that a shard is the one that was written.

    Raises:
        UserError: the file is missing, or its sha256 differs.
    """
    file = shard_file(folder, number)
    with reading(file):
        if sha256_of(file) != sha256:
            raise ValueError("its sha256 differs from dataset.json")


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Convert errors of a block that reads and checks `file` to `UserError`.

    Raises:
        UserError: `file` is missing, or the block raised ValueError or another error of a reader.
    """
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{file} is missing: run the stage that makes it with `dvc repro prepare`") from None
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise UserError(
            f"{file} is damaged ({problem}): make it again with `dvc repro --force --single-item prepare`"
        ) from None
