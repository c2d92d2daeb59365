"""Images in Parquet files, as the Hugging Face Hub has them."""

import json
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from diffusion_core.choices import Choice
from diffusion_core.data.formats import image_suffixes
from diffusion_core.data.sources.archive import Archive, archives_at, changed
from diffusion_core.data.sources.item import Item
from diffusion_core.data.sources.names import (
    MAGIC_BYTES,
    split_of_name,
    suffix_of,
    suffix_of_content,
    tell_left_out,
)
from diffusion_core.errors import UserError

LABEL = "label"
# What pyarrow raises where a file is damaged; texts that are not UTF-8 are a ValueError.
DAMAGE = (pa.ArrowException, ValueError)
# Rows in memory at once.
BATCH = 64
BUFFER_BYTES = 2**20


@dataclass(frozen=True)
class Parquet(Choice):
    """Every row of a Parquet file, or of all `*.parquet` below a folder.

    The path of an image is `<file>-<row>`. Where files are named for splits, as `train-00000-of-00002.parquet` or
    `train/0.parquet`, their images are in these. Files are never classes: without a column of labels there are none.
    A row without bytes is an empty file.

    Attributes:
        path: the file or folder; absolute, from `~`, or relative to the project's folder.
        image: column of the images: bytes, or the pairs of `bytes` and `path` of Hugging Face.
        label: column of the classes: text, or whole numbers, for which a file may have names. Files without the column
            `label` have no labels; null takes none.
    """

    path: Path
    image: str = "image"
    label: str | None = LABEL
    kind: Literal["parquet"] = "parquet"

    def items(self, *_: object) -> list[Item]:
        """Return the images in the order of the files; the stamp of each is the file's date and its row.

        Raises:
            UserError: a file is missing, damaged, or has not these columns, or there is no image.
        """
        archives, others = self._archives()
        tell_left_out(others, "files that are not *.parquet")
        return ParquetImages(archives, self.image, self.label).items()

    def contents(self, wanted: Sequence[Item], *_: object) -> Generator[bytes, None, None]:
        """Yield the bytes of each.

        Raises:
            UserError: a file is damaged or has changed.
        """
        return ParquetImages(self._archives()[0], self.image, self.label).contents(wanted)

    def _archives(self) -> tuple[list[Archive], Counter[str]]:
        return archives_at(f"ingest.source.path is {self.path}", self.path, ".parquet")


@dataclass(frozen=True)
class ParquetImages:
    """The images in Parquet files, with the errors of `Parquet`."""

    archives: Sequence[Archive]
    image: str = "image"
    label: str | None = LABEL

    def items(self) -> list[Item]:
        """Return the images in the order of the files."""
        items: list[Item] = []
        for archive in self.archives:
            split = split_of_name(archive.name)
            with self._opened(archive) as table:
                for number, (suffix, label) in enumerate(table.rows()):
                    path = f"{archive.name}-{number:06d}{suffix}"
                    items.append(Item(path, None, archive.stamp(number), label, split))
        if not items:
            raise UserError(f"{self.archives[0].key}, which holds no image: add some, or name another")
        return items

    def contents(self, wanted: Sequence[Item]) -> Generator[bytes, None, None]:
        """Yield the bytes of each."""
        places = [item.path.rpartition("-") for item in wanted]
        archives = {archive.name: archive for archive in self.archives}
        for name, group in groupby(places, lambda place: place[0]):
            if name not in archives:
                raise changed(self.archives[0].key)
            with self._opened(archives[name]) as table:
                yield from table.contents([int(number.partition(".")[0]) for _, _, number in group])

    @contextmanager
    def _opened(self, archive: Archive) -> Iterator["_Table"]:
        with archive.opened(*DAMAGE) as stream:
            # Without pre-buffering, which takes a whole group of rows into memory.
            file = pq.ParquetFile(stream, pre_buffer=False, buffer_size=BUFFER_BYTES, page_checksum_verification=True)
            if file.metadata.num_rows > archive.path.stat().st_size:
                raise ValueError(f"it has {file.metadata.num_rows:,} rows and fewer bytes")
            yield _Table(archive.key, file, self.image, self.label)


class _Table:
    """An open file whose columns have been checked."""

    def __init__(self, key: str, file: pq.ParquetFile, image: str, label: str | None) -> None:
        self._key, self._file, self._image = key, file, image
        self._groups = range(file.metadata.num_row_groups)
        schema = file.schema_arrow
        kind = self._type(schema, image, "image")
        parts = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}
        if not _is_bytes(parts.get("bytes", kind)):
            raise UserError(
                f"{key}, whose column {image} is {kind}: set ingest.source.image to a column of bytes, or of structs"
                " with bytes"
            )
        self._has_path = "path" in parts and _is_text(parts["path"])
        self._bytes = f"{image}.bytes" if parts else image
        self._label = None if label == LABEL and LABEL not in schema.names else label
        self._names: list[str] | None = None
        if self._label is not None:
            kind = self._type(schema, self._label, "label")
            if not (pa.types.is_integer(kind) or _is_text(kind)):
                raise UserError(
                    f"{key}, whose column {label} is {kind}: set ingest.source.label to a column of text or whole"
                    " numbers, or to null"
                )
            self._names = _class_names(schema.metadata or {}, self._label) if pa.types.is_integer(kind) else None

    def rows(self) -> Iterator[tuple[str, str | None]]:
        """Yield the suffix of each image, or no text where nothing says it, and its label."""
        for group in self._groups:
            # Names have suffixes, so that not all bytes need to be read.
            rows = [*self._rows(group, f"{self._image}.path")] if self._has_path else []
            yield from rows if rows and all(suffix for suffix, _ in rows) else self._rows(group, self._image)

    def contents(self, numbers: Sequence[int]) -> Iterator[bytes]:
        """Yield the images with these numbers, which ascend."""
        left, start = list(reversed(numbers)), 0
        for group in self._groups:
            stop = start + self._file.metadata.row_group(group).num_rows
            if left and left[-1] < stop:
                for batch in self._batches(group, self._bytes):
                    column = self._content(batch)
                    while left and left[-1] < start + len(column):
                        # A row without bytes is an empty file, which `prepare` puts into quarantine.
                        yield column[left.pop() - start].as_py() or b""
                    start += len(column)
            start = stop
        if left:
            raise changed(self._key)

    def _rows(self, group: int, column: str) -> Iterator[tuple[str, str | None]]:
        for batch in self._batches(group, column, *([] if self._label is None else [self._label])):
            labels = [None] * len(batch) if self._label is None else self._labels(batch)
            # A struct that is null has a null in each part.
            names = pc.struct_field(batch[self._image], "path").to_pylist() if self._has_path else [""] * len(batch)
            values = self._content(batch) if column == self._image else [None] * len(batch)
            for name, value, label in zip(names, values, labels, strict=True):
                suffix = suffix_of((name or "").replace("\\", "/"))
                if suffix in image_suffixes():
                    yield suffix, label
                elif value is None or not value.is_valid:
                    yield "", label
                else:
                    yield suffix_of_content(value.as_buffer()[:MAGIC_BYTES].to_pybytes()), label

    def _batches(self, group: int, *columns: str) -> Iterator[pa.RecordBatch]:
        wanted, found = self._file.metadata.row_group(group).num_rows, 0
        for batch in self._file.iter_batches(BATCH, row_groups=[group], columns=list(columns)):
            found += len(batch)
            yield batch
        # Pages that are damaged may be passed over without an error.
        if found != wanted:
            raise ValueError(f"a group of {wanted} rows has {found}")

    def _content(self, batch: pa.RecordBatch) -> Any:
        column = batch[self._image]
        return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column

    def _labels(self, batch: pa.RecordBatch) -> list[str | None]:
        return [self._label_of(value) for value in batch[self._label].to_pylist()]

    def _label_of(self, value: str | int | None) -> str | None:
        # Hugging Face writes -1 where an image has no label.
        if value is None or value in ("", -1):
            return None
        if self._names is None or isinstance(value, str):
            return str(value)
        if not 0 <= value < len(self._names):
            raise UserError(
                f"{self._key}, whose column {self._label} has {value} and names for {len(self._names)}: correct it"
            )
        return self._names[value]

    def _type(self, schema: pa.Schema, column: str, option: str) -> pa.DataType:
        if len(schema.get_all_field_indices(column)) != 1:
            raise UserError(
                f"{self._key}, which has not one column {column} among {', '.join(schema.names)}: set"
                f" ingest.source.{option} to another"
            )
        return schema.field(column).type


def _class_names(metadata: dict[bytes, bytes], label: str) -> list[str] | None:
    """Return the names of a column of numbers, which Hugging Face writes beside the schema."""
    try:
        feature = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"][label]
        return [str(name) for name in feature["names"]]
    except (KeyError, TypeError, RecursionError):
        return None


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
