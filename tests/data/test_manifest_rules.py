"""A row of the manifest that cannot be true is neither written nor read."""

from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffusion_core.data.manifest import SCHEMA, ManifestRow, read_manifest, write_manifest
from diffusion_core.errors import UserError

KEPT = ManifestRow(
    source="a.png",
    sha256="0" * 64,
    part=0,
    label=0,
    split="train",
    shard=0,
    row=0,
    width=640,
    height=480,
    mode="RGB",
    used=None,
    pixels="1" * 64,
    perceptual_hash=7,
    duplicate_of=None,
    quarantined=None,
)
DROPPED = replace(KEPT, source="b.png", split=None, duplicate_of="a.png")
NOT_LABELLED = replace(KEPT, source="c.png", label=None, split="test")
NOTHING = dict.fromkeys(("label", "split", "shard", "row", "width", "height", "mode", "pixels", "perceptual_hash"))
QUARANTINED = replace(KEPT, source="d.png", quarantined="the file is empty", **NOTHING)
ROWS = [KEPT, DROPPED, NOT_LABELLED, QUARANTINED]


@pytest.mark.parametrize("rows", [ROWS, []], ids=["every kind", "none"])
def test_what_can_be_true_is_written_and_read(tmp_path: Path, rows: list[ManifestRow]) -> None:
    write_manifest(tmp_path / "manifest.parquet", rows)
    assert read_manifest(tmp_path / "manifest.parquet").to_pylist() == [asdict(row) for row in rows]


@pytest.mark.parametrize(
    ("row", "change", "rule"),
    [
        (KEPT, {"split": "training"}, "split is train"),
        (KEPT, {"sha256": "0" * 63}, "sha256 is 64"),
        (KEPT, {"sha256": "A" * 64}, "sha256 is 64"),
        (KEPT, {"pixels": "0" * 65}, "pixels is 64"),
        (KEPT, {"width": 0}, "width is positive"),
        (KEPT, {"height": -1}, "height is positive"),
        (KEPT, {"label": -1}, "label is null or at least 0"),
        (KEPT, {"shard": -1}, "shard is null or at least 0"),
        (KEPT, {"row": -1}, "row is null or at least 0"),
        (KEPT, {"row": None}, "shard and row are both null"),
        (KEPT, {"shard": None, "row": None}, "quarantined and shard"),
        (KEPT, {"quarantined": "damaged"}, "quarantined and shard"),
        (KEPT, {"split": None}, "quarantined, or else split"),
        (QUARANTINED, {"split": "train"}, "quarantined, or else split"),
        (QUARANTINED, {"duplicate_of": "a.png"}, "quarantined, or else split"),
        (QUARANTINED, {"quarantined": None}, "quarantined and shard"),
    ],
)
def test_what_cannot_be_true_is_refused(tmp_path: Path, row: ManifestRow, change: dict, rule: str) -> None:
    file = tmp_path / "manifest.parquet"
    rows = [KEPT, replace(row, source="odd.png", **change)]
    with pytest.raises(ValueError, match=f"in the row of 'odd.png', it is not true that {rule}"):
        write_manifest(file, rows)
    assert not file.exists()
    pq.write_table(pa.table({name: [getattr(each, name) for each in rows] for name in SCHEMA.names}, SCHEMA), file)
    with pytest.raises(UserError, match=f"is damaged .*it is not true that {rule}.*--single-item prepare"):
        read_manifest(file)
