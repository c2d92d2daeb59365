"""`data/raw` holds what the source has, or what it held before."""

from pathlib import Path

import pytest

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import IngestSettings
from diffusion_core.errors import UserError
from diffusion_core.stages import ingest


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def settings(**source: str) -> IngestSettings:
    return IngestSettings.model_validate({"source": source})


def test_what_the_source_no_longer_has_goes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "old.png").write_bytes(b"1")
    ingest.run(settings(kind="folder", path=str(pictures)), Environment())
    (pictures / "old.png").unlink()
    (pictures / "new.png").write_bytes(b"2")
    ingest.run(settings(kind="folder", path="../pictures"), Environment())
    assert [file.name for file in Path("data/raw").iterdir()] == ["new.png"]
    assert [file.name for file in Path("data").iterdir()] == ["raw"]
    assert capsys.readouterr().out.endswith("ingest: 1 images in data/raw\n")


def test_digits_need_no_options() -> None:
    ingest.run(settings(kind="digits"), Environment())
    assert len(list(Path("data/raw").rglob("*.png"))) == 1797


def test_a_failure_leaves_what_was_there() -> None:
    Path("data/raw").mkdir(parents=True)
    Path("data/raw/old.png").write_bytes(b"1")
    with pytest.raises(UserError, match=r"ingest\.source\.path"):
        ingest.run(settings(kind="folder", path="missing"), Environment())
    assert Path("data/raw/old.png").read_bytes() == b"1"
    assert [file.name for file in Path("data").iterdir()] == ["raw"]
