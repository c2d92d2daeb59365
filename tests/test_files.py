"""Files are whole or not there."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_core import files
from diffusion_core.files import (
    discard,
    disk_refusal,
    replaced,
    replaced_file,
    replaced_files,
    sha256_of,
    sweep_discarded,
    write_whole,
)


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


def test_a_file_is_written_whole_and_for_its_owner_alone_where_that_is_asked(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("old")
    write_whole(file, "new\n", mode=0o600)
    assert file.read_text() == "new\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["secret"]


def test_what_a_killed_process_left_beside_a_file_goes_and_what_another_is_writing_stays(
    tmp_path: Path, dead: int
) -> None:
    for pid in (dead, os.getpid(), os.getppid()):
        (tmp_path / f".file.tmp-{pid}").write_text("half")
    (tmp_path / f".other.tmp-{dead}").touch()
    write_whole(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"
    assert {each.name for each in tmp_path.iterdir()} == {"file", f".file.tmp-{os.getppid()}", f".other.tmp-{dead}"}


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_whole(file, "new")
    assert file.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


SWEEPER = """
import sys
from pathlib import Path
from diffusion_core.files import sweep_discarded
print("sweeps", flush=True)
while True:
    sweep_discarded(Path(sys.argv[1]))
"""


def test_two_processes_may_remove_what_was_discarded(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", SWEEPER, str(tmp_path)], stdout=subprocess.PIPE) as sweeper:
        assert sweeper.stdout is not None
        sweeper.stdout.readline()
        try:
            for number in range(10):
                folder = tmp_path / str(number)
                folder.mkdir()
                for name in range(300):
                    (folder / str(name)).touch()
                discard(folder)
        finally:
            sweeper.kill()
    sweep_discarded(tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_leftover_of_an_earlier_process_with_this_id_stops_no_removal(tmp_path: Path) -> None:
    for name in (".x.trash-" + str(os.getpid()), "x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    discard(tmp_path / "x")
    assert not [*tmp_path.iterdir()]


# Kills itself before the n-th change of the disk.
KILLED_WHILE_REMOVING = """
import os, shutil, signal, sys
from pathlib import Path
from diffusion_core.files import discard

left = int(sys.argv[2])

def counted(operation):
    def wrapper(*arguments, **options):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return operation(*arguments, **options)
    return wrapper

for name in ("rename", "unlink", "rmdir"):
    setattr(os, name, counted(getattr(os, name)))
{"discarded": discard, "removed in place": shutil.rmtree}[sys.argv[3]](Path(sys.argv[1]))
"""


@pytest.mark.parametrize("how", ["discarded", "removed in place"])
def test_a_folder_that_is_discarded_is_whole_or_gone_after_a_kill_at_any_moment(tmp_path: Path, how: str) -> None:
    left = []
    for moment in range(1, 20):
        folder = tmp_path / str(moment) / "x"
        folder.mkdir(parents=True)
        for name in ("a", "b"):
            (folder / name).touch()
        script = [sys.executable, "-c", KILLED_WHILE_REMOVING, str(folder), str(moment), how]
        code = subprocess.run(script, check=False).returncode
        left.append(len([*folder.iterdir()]) if folder.exists() else None)
        sweep_discarded(folder.parent)
        assert [each.name for each in folder.parent.iterdir()] == ([] if left[-1] is None else ["x"])
        if code == 0:
            break
        assert code == -signal.SIGKILL
    # The control: in place, a kill leaves one of two files, or an empty folder.
    assert left == {"discarded": [2, None, None, None, None], "removed in place": [2, 1, 0, None]}[how]


def test_files_with_names_like_ours_are_left_alone(tmp_path: Path) -> None:
    """Somebody else named them so."""
    names = {".file.tmp-old", ".file.tmp-20240101123000", ".file.d.old-new", ".x.trash-old", ".x.trash-20240101"}
    for name in names:
        (tmp_path / name).touch() if "tmp" in name else (tmp_path / name).mkdir()
    write_whole(tmp_path / "file", "new")
    with replaced(tmp_path / "file.d"), replaced_files([tmp_path / "file"]) as folder:
        (folder / "file").touch()
    sweep_discarded(tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {*names, "file", "file.d"}
    # The control: with the id of a process that has ended, it is ours.
    (tmp_path / ".x.trash-4194305").mkdir()
    sweep_discarded(tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {*names, "file", "file.d"}


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux flushes one filesystem")
def test_a_new_folder_waits_for_no_filesystem_but_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def waits() -> None:
        raise AssertionError("a dead filesystem elsewhere")

    monkeypatch.setattr(os, "sync", waits)
    with replaced(tmp_path / "out") as folder:
        (folder / "file").write_text("new")
    assert (tmp_path / "out" / "file").read_text() == "new"


def test_a_filesystem_that_cannot_be_flushed_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()

    def refuses(_: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files, "_flush_filesystem", refuses)
    with pytest.raises(OSError, match="Input/output error"), replaced(tmp_path / "out") as folder:
        (folder / "file").write_text("new")
    assert [file.name for file in tmp_path.rglob("*")] == ["out"]


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "the disk refuses b (No space left on device): make room or correct its rights"),
        (errno.EROFS, "the disk refuses b (Read-only file system): make room or correct its rights"),
        (errno.EIO, "the disk fails at b (Input/output error): see the system's log, and use another disk"),
        (117, "the disk fails at b (Structure needs cleaning): see the system's log, and use another disk"),
    ],
)
def test_what_a_disk_does_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, sentence: str
) -> None:
    """Here of a rename, which names both files."""

    def fails(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number), "a", None, "b")

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match=os.strerror(number)) as raised, replaced_file(tmp_path / "file") as beside:
        beside.write_text("new")
    assert str(disk_refusal(raised.value)) == sentence
    assert not [*tmp_path.iterdir()]


def test_what_is_not_of_a_disk_is_no_sentence_of_one() -> None:
    assert disk_refusal(OSError(errno.ECONNREFUSED, "Connection refused")) is None
    # As that of a terminal that is gone.
    assert disk_refusal(OSError(errno.EIO, "Input/output error")) is None
