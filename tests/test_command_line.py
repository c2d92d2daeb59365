import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_core.__main__ import main
from diffusion_core.stages import ingest

PARAMS = Path("params.yaml").read_text(encoding="utf-8")


def stage(name, folder, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "diffusion_core", *name.split()],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), **environment},
    )
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "params.yaml").write_text(PARAMS, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "missing", "remedy"),
    [
        ("prepare", "data/raw", "dvc repro ingest"),
        ("reference", "data/prepared", "dvc repro prepare"),
        ("train", "data/prepared", "dvc repro prepare"),
        ("sample", "models/model.json", "dvc repro train"),
        ("evaluate", "is missing", "dvc repro"),
        ("publish", "is missing", "dvc repro"),
    ],
)
def test_a_missing_stage_output_is_a_sentence_and_exit_code_2(folder, name, missing, remedy):
    done = stage(name, folder)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert missing in line
    assert remedy in line
    assert {path.name for path in folder.iterdir()} - {".cache"} == {"params.yaml"}


def test_a_mistake_in_the_last_section_stops_the_first_stage(folder):
    (folder / "params.yaml").write_text(PARAMS + "\nbogus: 1\n", encoding="utf-8")
    done = stage("ingest", folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert "unknown key bogus" in done.stderr
    assert not (folder / "data").exists()


def test_an_empty_folder_is_told(folder):
    (folder / "pictures").mkdir()
    text = PARAMS.replace("kind: digits", "{kind: folder, path: pictures}  #").replace("source:\n    ", "source: ")
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    done = stage("ingest", folder)
    assert done.returncode == 2
    assert "ingest.source.path" in done.stderr
    assert not (folder / "data" / "raw").exists()


def test_an_unknown_stage_and_no_stage(folder):
    assert stage("tarin", folder).returncode == 2
    assert "ingest" in stage("", folder).stdout


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses_is_a_sentence_and_exit_code_2(folder, monkeypatch, capsys, number):
    def run(ingest):
        raise OSError(number, os.strerror(number), "data/raw/0.png")

    monkeypatch.chdir(folder)
    monkeypatch.setattr(ingest, "run", run)
    monkeypatch.setattr(sys, "argv", ["diffusion_core", "ingest"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert capsys.readouterr().err == (
        f"error: the disk refuses data/raw/0.png ({os.strerror(number)}): make room or correct its rights\n"
    )
