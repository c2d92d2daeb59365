"""One process at a time has what is locked."""

import errno
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from diffusion_core.locks import Locked, exclusive_lock

HOLDER = """
import sys, time
from pathlib import Path
from diffusion_core.locks import exclusive_lock
with exclusive_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_keeps_others_out_until_its_process_is_killed(tmp_path: Path) -> None:
    lock = tmp_path / "folder" / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        for _ in range(2):
            with pytest.raises(Locked) as refused, exclusive_lock(lock):
                pass
            assert refused.value.holder == f" (process {holder.pid})"
        holder.kill()
    with exclusive_lock(lock):
        pass


@pytest.mark.parametrize(
    ("content", "holder"),
    [
        ("7 machine-3.example\n", " (process 7 on machine-3.example)"),
        (f"4194999 {socket.gethostname()}\n", ""),
        ("", ""),
        ("7", ""),
        ("x y\n", ""),
        ("7 a b\n", ""),
        ("123456789012 machine\n", ""),
        ("7 machine\n\n", ""),
        ("7 " + "a" * 400 + "\n", ""),
    ],
)
def test_a_lock_file_that_does_not_tell_its_process_breaks_no_message(
    tmp_path: Path, content: str, holder: str
) -> None:
    with exclusive_lock(tmp_path / "lock"):
        (tmp_path / "lock").write_text(content)
        with pytest.raises(Locked, match="another process holds") as refused, exclusive_lock(tmp_path / "lock"):
            pass
    assert refused.value.holder == holder


def test_a_disk_that_has_no_room_for_the_id_of_a_process_lets_it_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> str:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(socket, "gethostname", full)
    with exclusive_lock(tmp_path / "lock"), pytest.raises(Locked) as refused, exclusive_lock(tmp_path / "lock"):
        pass
    assert refused.value.holder == ""


DISCARDER = """
import sys
from pathlib import Path
from diffusion_core.files import discard
from diffusion_core.locks import exclusive_lock
with exclusive_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
    discard(Path(sys.argv[1]).parent)
"""


def test_who_waits_for_a_lock_gets_it_when_its_holder_discards_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "folder" / "lock"
    script = [sys.executable, "-c", DISCARDER, str(lock)]
    tries: list[str] = []
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdout.readline()
        acquire_once = FileLock._acquire

        def acquire(self: FileLock) -> None:
            try:
                acquire_once(self)
            except FileNotFoundError:
                tries.append("the folder is gone")
                raise
            if not tries:
                assert not self.is_locked
                tries.append("held")
                # It discards the folder between two attempts of this process.
                holder.communicate()

        monkeypatch.setattr(FileLock, "_acquire", acquire)
        with exclusive_lock(lock, seconds=30):
            # Otherwise the case was not reached: the folder had gone before this process waited, or it never waited.
            assert tries == ["held", "the folder is gone"]
            assert lock.exists()
            with pytest.raises(Locked), exclusive_lock(lock):
                pass
        assert holder.wait() == 0
