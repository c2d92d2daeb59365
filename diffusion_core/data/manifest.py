"""`manifest.parquet`: one row for each image and for each file that made none."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from diffusion_core.data.shards import reading

MANIFEST = "manifest.parquet"

Split = Literal["train", "validation", "test"]

SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("part", pa.int64(), nullable=False),
        pa.field("label", pa.int64()),
        pa.field("split", pa.string()),
        pa.field("shard", pa.int64()),
        pa.field("row", pa.int64()),
        pa.field("width", pa.int64()),
        pa.field("height", pa.int64()),
        pa.field("mode", pa.string()),
        pa.field("used", pa.float64()),
        pa.field("pixels", pa.string()),
        pa.field("perceptual_hash", pa.uint64()),
        pa.field("duplicate_of", pa.string()),
        pa.field("quarantined", pa.string()),
    ]
)


@dataclass(frozen=True)
class ManifestRow:
    """One image, or a file that made none.

    Attributes:
        source: its path in the source, with `/` between its parts.
        sha256: sha256 of the file's bytes, in hexadecimal.
        part: number of the part of the picture, from 0; see `crops`.
        label: index of the class in `DatasetInfo.classes`; None if there are no classes.
        split: the split of the image; None if the file was quarantined, or dropped as a near-duplicate.
        shard: number of the shard with the pixels; None if the file was quarantined.
        row: index in the shard; None if the file was quarantined.
        width: width of the original; None if its header is damaged.
        height: height of the original; None if its header is damaged.
        mode: Pillow's mode of the original; None if its header is damaged.
        used: largest sample of the original as a share of white, where it has more than 8 bits a sample.
        pixels: sha256 of the prepared pixels, in hexadecimal; None if the file was quarantined.
        perceptual_hash: 64 bits that look-alikes share, see `duplicates`; None if the file was quarantined.
        duplicate_of: source of the first of its near-duplicates; None if it is the first or the only one.
        quarantined: why the file is not in the dataset; None if it is.
    """

    source: str
    sha256: str
    part: int
    label: int | None
    split: Split | None
    shard: int | None
    row: int | None
    width: int | None
    height: int | None
    mode: str | None
    used: float | None
    pixels: str | None
    perceptual_hash: int | None
    duplicate_of: str | None
    quarantined: str | None


def write_manifest(file: Path, rows: Sequence[ManifestRow]) -> None:
    """Write `rows` to `file` and flush it to disk; equal rows give equal bytes."""
    with file.open("wb") as stream:
        table = pa.table({name: [getattr(row, name) for row in rows] for name in SCHEMA.names}, SCHEMA)
        pq.write_table(table, stream, compression="zstd", write_page_checksum=True)
        stream.flush()
        os.fsync(stream.fileno())


def read_manifest(file: Path) -> pa.Table:
    """Return the table in `file`, with the columns of `SCHEMA`.

    Raises:
        UserError: the file is missing or damaged.
    """
    with reading(file):
        table = pq.read_table(file, page_checksum_verification=True)
        if not table.schema.equals(SCHEMA):
            raise ValueError("its columns are not those of a manifest")
    return table


def rows_of(table: pa.Table) -> list[ManifestRow]:
    """Return the rows of a manifest."""
    return [ManifestRow(**row) for row in table.to_pylist()]
