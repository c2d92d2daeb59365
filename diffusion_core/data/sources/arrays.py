"""Images in NumPy's files."""

import io
import math
import zipfile
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt

from diffusion_core.choices import Choice
from diffusion_core.data.sources.archive import Archive, archive_at, changed, check_size
from diffusion_core.data.sources.item import Item
from diffusion_core.data.sources.names import split_of_name, tell_left_out
from diffusion_core.data.sources.png import WRITTEN_BY, as_png
from diffusion_core.data.sources.zip import DAMAGE as ZIP_DAMAGE
from diffusion_core.errors import UserError

# Names of the images and of their labels: those that this project documents, MedMNIST's, Keras's and NumPy's own.
NAMES = (
    ("images", "labels"),
    *((f"{split}_images", f"{split}_labels") for split in ("train", "val", "test")),
    *((f"x_{split}", f"y_{split}") for split in ("train", "val", "test")),
    ("arr_0", "arr_1"),
)
CHANNELS = (1, 3, 4)
DAMAGE = (*ZIP_DAMAGE, SyntaxError, TokenError)


@dataclass(frozen=True)
class Arrays(Choice):
    """Every image of an array in a `.npy` or `.npz` file. Each becomes a PNG, and nothing is unpickled.

    The array has 8-bit integers and is N x H x W, or N x H x W x 1, 3 or 4. In a `.npz` file it is `images`, beside
    `labels` where there are classes. The names of MedMNIST (`train_images`, `train_labels` and likewise for `val` and
    `test`) and of Keras (`x_train`, `y_train`) say splits too. Arrays without names are images and labels.

    Attributes:
        path: the file; absolute, from `~`, or relative to the project's folder.
    """

    path: Path
    kind: Literal["arrays"] = "arrays"

    def items(self, *_: object) -> list[Item]:
        """Return `<array>-<row>.png` for each; the stamp is the file's date and the row.

        Raises:
            UserError: the file is missing, damaged or has no image, or an array is refused.
        """
        return ArraysImages(self._archive()).items()

    def contents(self, wanted: Sequence[Item], *_: object) -> Generator[bytes, None, None]:
        """Yield each as a PNG.

        Raises:
            UserError: the file is damaged or has changed.
        """
        return ArraysImages(self._archive()).contents(wanted)

    def _archive(self) -> Archive:
        return archive_at(f"ingest.source.path is {self.path}", self.path)


@dataclass(frozen=True)
class ArraysImages:
    """The images in a file of NumPy, with the errors of `Arrays`."""

    archive: Archive

    def items(self) -> list[Item]:
        """Return the images in the order of the file."""
        items = []
        with self._opened() as file:
            pairs = [(name, label) for name, label in file.pairs() if name in file.names]
            others = {*file.names} - {each for pair in pairs for each in pair}
            tell_left_out(Counter({f"array {name}": 1 for name in sorted(others)}), "arrays")
            for name, label in pairs:
                shape = file.images(name)
                labels = file.labels(label, shape[0]) if label in file.names else [None] * shape[0]
                split = split_of_name(name)
                for row, each in enumerate(labels):
                    stamp = self.archive.stamp(f"{row} {WRITTEN_BY}")
                    items.append(Item(f"{name}-{row:06d}.png", None, stamp, each, split))
        if not items:
            wanted = ", ".join(name for name, _ in NAMES)
            raise UserError(f"{self.archive.key}, which has no image in one of the arrays {wanted}: name one so")
        return items

    def contents(self, wanted: Sequence[Item]) -> Generator[bytes, None, None]:
        """Yield each as a PNG."""
        places = [item.path.removesuffix(".png").rpartition("-") for item in wanted]
        for name, group in groupby(places, lambda place: place[0]):
            with self._opened() as file:
                if name not in file.names:
                    raise changed(self.archive.key)
                for pixels in file.rows(name, [int(row) for _, _, row in group]):
                    yield as_png(pixels)

    @contextmanager
    def _opened(self) -> Iterator["_File"]:
        with self.archive.opened(*DAMAGE) as stream:
            is_zip = stream.read(2) == b"PK"
            stream.seek(0)
            if is_zip:
                with zipfile.ZipFile(stream) as archive:
                    yield _File(self.archive, stream, archive)
            else:
                yield _File(self.archive, stream, None)


class _File:
    """An open file, whose arrays are read without taking one into memory."""

    def __init__(self, archive: Archive, stream: IO[bytes], zipped: zipfile.ZipFile | None) -> None:
        self._archive, self._stream, self._zipped = archive, stream, zipped
        # A file `.npy` has one array without a name.
        self.names = [archive.name]
        if zipped is not None:
            self.names = [name.removesuffix(".npy") for name in zipped.namelist()]
            if len({*self.names}) < len(self.names):
                raise zipfile.BadZipFile("it has an array twice")

    def pairs(self) -> Sequence[tuple[str, str]]:
        """Return the names that arrays of images and of their labels may have."""
        return NAMES if self._zipped is not None else [(self._archive.name, "")]

    def images(self, name: str) -> tuple[int, ...]:
        """Return the shape of an array of images.

        Raises:
            UserError: it is not one of images with 8 bits a sample.
        """
        with self._array(name) as (_, shape, dtype):
            key = self._archive.key
            if dtype != np.uint8:
                raise UserError(
                    f"{key}, whose array {name} is of {dtype}: save whole numbers from 0 to 255 with"
                    " `.astype(numpy.uint8)`"
                )
            if len(shape) not in (3, 4) or shape[3:] not in ((), *((count,) for count in CHANNELS)) or 0 in shape[1:]:
                sides = " x ".join(map(str, shape))
                raise UserError(
                    f"{key}, whose array {name} has the shape {sides}: save N x H x W or N x H x W x 1, 3 or 4"
                )
            check_size(key, name, math.prod(shape[1:]))
            return shape

    def labels(self, name: str, count: int) -> list[str]:
        """Return the labels of that number of images.

        Raises:
            UserError: they are not one for each.
        """
        with self._array(name) as (stream, shape, dtype):
            if shape not in ((count,), (count, 1)) or dtype.kind not in "iuU":
                raise UserError(
                    f"{self._archive.key}, whose array {name} has the shape {' x '.join(map(str, shape))} and is of"
                    f" {dtype}: save one whole number or text for each of the {count} images, or leave it out"
                )
            values = np.frombuffer(_read(stream, count * dtype.itemsize), dtype)
        return [str(value) for value in values.tolist()]

    def rows(self, name: str, numbers: Sequence[int]) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the images with these numbers, which ascend."""
        shape = self.images(name)
        if numbers[-1] >= shape[0]:
            raise changed(self._archive.key)
        size = math.prod(shape[1:])
        with self._array(name) as (stream, _, _):
            next_row = 0
            for number in numbers:
                # Forward only, so that compressed bytes are read once.
                stream.seek((number - next_row) * size, io.SEEK_CUR)
                next_row = number + 1
                pixels = np.frombuffer(_read(stream, size), np.uint8).reshape(shape[1:])
                yield pixels[..., 0] if shape[3:] == (1,) else pixels

    @contextmanager
    def _array(self, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]]:
        """Open an array for the block, at its first byte; it has as many bytes as its shape says.

        Raises:
            UserError: it is of Python objects or in Fortran's order.
        """
        if self._zipped is None:
            self._stream.seek(0)
            size = self._archive.path.stat().st_size
            yield self._checked(name, self._stream, size)
        else:
            info = self._zipped.getinfo(f"{name}.npy")
            with self._zipped.open(info) as stream:
                yield self._checked(name, stream, info.file_size)

    def _checked(self, name: str, stream: IO[bytes], size: int) -> tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]:
        major, minor = np.lib.format.read_magic(stream)
        if major not in (1, 2):
            # The third has names of columns that are not ASCII, which no image has.
            raise ValueError(f"its format {major}.{minor} is not known")
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(stream)
        if dtype.hasobject:
            raise UserError(
                f"{self._archive.key}, whose array {name} is of Python objects, which could run code: save numbers"
                " with `.astype(numpy.uint8)`"
            )
        if is_fortran and len(shape) > 1:
            raise UserError(
                f"{self._archive.key}, whose array {name} is in Fortran's order: save it with `numpy.ascontiguousarray`"
            )
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size - stream.tell():
            raise ValueError(f"its array {name} has not as many bytes as its header says")
        return stream, shape, dtype


def _read(stream: IO[bytes], size: int) -> bytes:
    content = stream.read(size)
    if len(content) != size:
        raise ValueError("it is cut off")
    return content
