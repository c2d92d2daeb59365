"""The manifest says of each file what became of it, and notices when it is damaged."""

from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffusion_core.data.manifest import ManifestRow, read_manifest, rows_of, write_manifest
from diffusion_core.errors import UserError

ROWS = [
    ManifestRow("a/ü.png", "0" * 64, 0, 0, "train", 0, 0, 640, 480, "RGB", None, "3" * 64, 2**64 - 1, None, None),
    ManifestRow("b.png", "1" * 64, 1, None, "validation", 1, 7, 8, 8, "I;16", 0.06, "4" * 64, 0, "a/ü.png", None),
    ManifestRow("c.png", "2" * 64, 0, *[None] * 11, "the file is empty"),
]


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    write_manifest(tmp_path / "manifest.parquet", ROWS)
    assert read_manifest(tmp_path / "manifest.parquet").to_pylist() == [asdict(row) for row in ROWS]
    assert rows_of(read_manifest(tmp_path / "manifest.parquet")) == ROWS


def test_equal_rows_make_equal_bytes(tmp_path: Path) -> None:
    write_manifest(tmp_path / "one", ROWS)
    write_manifest(tmp_path / "two", ROWS)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_damage_changes_no_value_in_silence(tmp_path: Path) -> None:
    file = tmp_path / "manifest.parquet"
    write_manifest(file, ROWS)
    content, values = file.read_bytes(), read_manifest(file).to_pylist()
    # Column data lies before the footer, whose length the last eight bytes give.
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    found = 0
    positions = range(4, footer, 5)
    for position in positions:
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        file.write_bytes(damaged)
        try:
            assert read_manifest(file).to_pylist() == values, position
        except UserError:
            found += 1
    assert found > len(positions) / 2


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" * 100], ids=["empty", "header", "garbage"])
def test_a_spoilt_manifest_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"manifest\.parquet is damaged \(.*dvc repro --force"):
        read_manifest(tmp_path / "manifest.parquet")


def test_another_table_is_no_manifest(tmp_path: Path) -> None:
    pq.write_table(pa.table({"source": ["a.png"]}), tmp_path / "manifest.parquet")
    with pytest.raises(UserError, match="its columns are not those of a manifest"):
        read_manifest(tmp_path / "manifest.parquet")


def test_a_missing_manifest_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.parquet is missing: .*`dvc repro prepare`"):
        read_manifest(tmp_path / "manifest.parquet")
