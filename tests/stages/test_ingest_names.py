"""Names of files and labels that are not UTF-8."""

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import IngestSettings
from diffusion_core.errors import UserError
from diffusion_core.stages import ingest


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one image, beside the working directory."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    folder = tmp_path / "odd"
    (folder / "cat").mkdir(parents=True)
    (folder / "cat/0.png").write_bytes(b"0")
    return folder


def take(folder: Path, kind: str) -> None:
    ingest.run(IngestSettings.model_validate({"source": {"kind": kind, "path": str(folder)}}), Environment())


def _odd_label(folder: Path) -> None:
    (folder / "metadata.jsonl").write_bytes(b'{"file_name": "cat/0.png", "label": "\\ud800"}')


def _odd_archive(folder: Path) -> None:
    (folder / "cat/0.png").unlink()
    table = pa.table({"image": pa.array([b"\x89PNG\r\n\x1a\n" + bytes(8)], pa.binary())})
    pq.write_table(table, folder / "odd.parquet")
    (folder / "odd.parquet").rename(folder / os.fsdecode(b"\xff.parquet"))


@pytest.mark.parametrize(("make", "kind"), [(_odd_label, "folder"), (_odd_archive, "parquet")])
def test_a_name_that_is_not_utf_8_is_refused(folder: Path, make: Callable[[Path], None], kind: str) -> None:
    make(folder)
    with pytest.raises(
        UserError, match=r"ingest\.source has the (label|path) .* of '.*', which is not UTF-8: rename it"
    ):
        take(folder, kind)
    assert not Path("data/raw").exists()


def test_a_name_that_is_left_out_may_be_anything(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / os.fsdecode(b"a.\xff")).touch()
    take(folder, "folder")
    told = capsys.readouterr().out.encode()
    assert b"left out files that are not images: 1 (1 .\\udcff)" in told
