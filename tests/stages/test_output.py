"""An output is replaced as a whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_core.stages.output import replaced, replaced_files


def test_the_new_folder_takes_the_place_of_the_old(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with replaced(tmp_path / "data" / "out") as folder:
            (folder / content).write_text(content)
    assert [file.name for file in (tmp_path / "data" / "out").iterdir()] == ["new"]
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()

    def fail() -> None:
        with replaced(tmp_path / "out") as folder:
            (folder / "half").touch()
            raise error

    with pytest.raises(error):
        fail()
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "old"]


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path: Path, dead: int) -> None:
    for word in ("tmp", "old"):
        for pid in (dead, os.getpid(), os.getppid()):
            (tmp_path / f".out.{word}-{pid}").mkdir()
    with replaced(tmp_path / "out"):
        pass
    assert {file.name for file in tmp_path.iterdir()} == {
        "out",
        f".out.tmp-{os.getppid()}",
        f".out.old-{os.getppid()}",
    }


@pytest.fixture
def dead() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_was_taken_away_before_a_kill_is_put_back(tmp_path: Path, dead: int) -> None:
    for word in ("tmp", "old"):
        (tmp_path / f".out.{word}-{dead}").mkdir()
        (tmp_path / f".out.{word}-{dead}" / word).touch()
    with pytest.raises(ValueError, match="no luck"), replaced(tmp_path / "out"):
        raise ValueError("no luck")
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "old"]


def test_files_are_replaced_together_or_not_at_all(tmp_path: Path, dead: int) -> None:
    files = [tmp_path / "a.txt", tmp_path / "sub" / "b.txt"]
    (tmp_path / f".a.txt.tmp-{dead}").mkdir()
    with replaced_files(files) as folder:
        for file in files:
            (folder / file.name).write_text("one")

    def fail() -> None:
        with replaced_files(files) as folder:
            (folder / "a.txt").write_text("two")
            raise ValueError("no luck")

    with pytest.raises(ValueError, match="no luck"):
        fail()
    assert [file.read_text() for file in files] == ["one", "one"]
    assert {file.name for file in tmp_path.iterdir()} == {"a.txt", "sub"}
