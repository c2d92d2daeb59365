"""An output is replaced as a whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_core.stages.output import replaced


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


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for word in ("tmp", "old"):
        for pid in (dead.pid, os.getpid(), os.getppid()):
            (tmp_path / f".out.{word}-{pid}").mkdir()
    with replaced(tmp_path / "out"):
        pass
    assert {file.name for file in tmp_path.iterdir()} == {
        "out",
        f".out.tmp-{os.getppid()}",
        f".out.old-{os.getppid()}",
    }
