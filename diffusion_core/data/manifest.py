"""`manifest.parquet`: one row for each ingested file, kept or quarantined."""

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from diffusion_core.data.shards import reading

MANIFEST = "manifest.parquet"

Split = Literal["train", "validation"]

SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("label", pa.int64()),
        pa.field("split", pa.string()),
        pa.field("shard", pa.int64()),
        pa.field("row", pa.int64()),
        pa.field("width", pa.int64()),
        pa.field("height", pa.int64()),
        pa.field("mode", pa.string()),
        pa.field("quarantined", pa.string()),
    ]
)


@dataclass(frozen=True)
class ManifestRow:
    """One ingested file.

    Attributes:
        source: path below `data/raw`, with `/` between its parts.
        sha256: sha256 of the file's bytes, in hexadecimal.
        label: index of the class in `DatasetInfo.classes`; None if there are no classes.
        split: the split of the image; None if the file was quarantined.
        shard: number of the shard with the pixels; None if the file was quarantined.
        row: index in the shard; None if the file was quarantined.
        width: width of the original; None if its header is damaged.
        height: height of the original; None if its header is damaged.
        mode: Pillow's mode of the original; None if its header is damaged.
        quarantined: why the file is not in the dataset; None if it is.
    """

    source: str
    sha256: str
    label: int | None
    split: Split | None
    shard: int | None
    row: int | None
    width: int | None
    height: int | None
    mode: str | None
    quarantined: str | None


def write_manifest(file: Path, rows: Iterable[ManifestRow]) -> None:
    """Write `rows` to `file` and flush it to disk; equal rows give equal bytes."""
    with file.open("wb") as stream:
        table = pa.Table.from_pylist([asdict(row) for row in rows], SCHEMA)
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
