"""`manifest.parquet`: one row for each image and for each file that made none."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc
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

SHA256 = "^[0-9a-f]{64}$"

# What is true of every row beyond the types of its columns. Null passes a comparison.
RULES: dict[str, Callable[[pa.Table], pa.ChunkedArray]] = {
    "split is train, validation, test or null": lambda rows: pc.is_in(
        rows["split"], pa.array([*get_args(Split), None], pa.string())
    ),
    "sha256 is 64 hexadecimal digits": lambda rows: pc.match_substring_regex(rows["sha256"], SHA256),
    "pixels is 64 hexadecimal digits or null": lambda rows: pc.match_substring_regex(rows["pixels"], SHA256),
    "width is positive or null": lambda rows: pc.greater(rows["width"], 0),
    "height is positive or null": lambda rows: pc.greater(rows["height"], 0),
    "label is null or at least 0": lambda rows: pc.greater_equal(rows["label"], 0),
    "shard is null or at least 0": lambda rows: pc.greater_equal(rows["shard"], 0),
    "row is null or at least 0": lambda rows: pc.greater_equal(rows["row"], 0),
    "shard and row are both null or neither": lambda rows: pc.equal(rows["shard"].is_null(), rows["row"].is_null()),
    "quarantined and shard are never both null or both set": lambda rows: pc.xor(
        rows["quarantined"].is_null(), rows["shard"].is_null()
    ),
    "quarantined, or else split or duplicate_of, is set": lambda rows: pc.xor(
        rows["quarantined"].is_valid(), pc.or_(rows["split"].is_valid(), rows["duplicate_of"].is_valid())
    ),
}


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
    """Write `rows` to `file` and flush it to disk; equal rows give equal bytes.

    Raises:
        ValueError: a row breaks one of `RULES`.
    """
    table = pa.table({name: [getattr(row, name) for row in rows] for name in SCHEMA.names}, SCHEMA)
    check_rows(table)
    with file.open("wb") as stream:
        pq.write_table(table, stream, compression="zstd", write_page_checksum=True)
        stream.flush()
        os.fsync(stream.fileno())


def read_manifest(file: Path) -> pa.Table:
    """Return the table in `file`, with the columns of `SCHEMA` and rows that keep `RULES`.

    Raises:
        UserError: the file is missing or damaged.
    """
    with reading(file):
        table = pq.read_table(file, page_checksum_verification=True)
        if not table.schema.equals(SCHEMA):
            raise ValueError("its columns are not those of a manifest")
        check_rows(table)
    return table


def check_rows(table: pa.Table) -> None:
    """Check the values of a manifest.

    Raises:
        ValueError: a row breaks one of `RULES`.
    """
    for rule, holds in RULES.items():
        is_kept = pc.fill_null(holds(table), True)
        if not pc.all(is_kept, min_count=0).as_py():
            source = table["source"][pc.index(is_kept, False).as_py()].as_py()
            raise ValueError(f"in the row of {source!r}, it is not true that {rule}")


def rows_of(table: pa.Table) -> list[ManifestRow]:
    """Return the rows of a manifest."""
    return list(map(ManifestRow, *(table[field.name].to_pylist() for field in fields(ManifestRow))))
