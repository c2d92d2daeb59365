"""Exclusive locks between processes."""

import math
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout


class Locked(Exception):
    """Another process has the lock.

    Attributes:
        holder: that process, as " (process 4242)" for a message; "" where the lock file does not name it.
    """

    def __init__(self, sentence: str = "", holder: str = "") -> None:
        super().__init__(sentence)
        self.holder = holder


@contextmanager
def exclusive_lock(file: Path, *, seconds: float = 0.0) -> Iterator[None]:
    """Lock `file` against other processes during the block; the lock of a killed process is released.

    Args:
        file: the lock file; it and its folder are created if missing, also if another process removes them meanwhile.
        seconds: how long to wait for the lock; infinity for as long as it takes.

    Raises:
        Locked: another process has the lock all that time.
    """
    lock = _acquired(file, time.monotonic() + seconds)
    try:
        yield
    finally:
        lock.release()


def is_held(file: Path) -> bool:
    """Return whether a process has the lock, without changing the file; false on Windows, where that is not known."""
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        with file.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _acquired(file: Path, deadline: float) -> BaseFileLock:
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file)
        left = max(deadline - time.monotonic(), 0.0)
        try:
            lock.acquire(timeout=-1 if left == math.inf else left)
            _write_holder(file, lock)
            return lock
        except FileNotFoundError:
            # Who held the lock has discarded the folder.
            if not left:
                raise Locked(f"another process removes {file.parent}") from None
        except Timeout:
            raise Locked(f"another process holds {file}", _holder(file)) from None


def _write_holder(file: Path, lock: BaseFileLock) -> None:
    """Write which process has a lock; where a disk refuses, messages do without."""
    # Where a file system has no locks, the file itself is one, and its content belongs to the library.
    if not isinstance(lock, SoftFileLock):
        with suppress(OSError), file.open("r+", encoding="utf-8") as stream:
            stream.truncate()
            stream.write(f"{os.getpid()} {socket.gethostname()}\n")


def _holder(file: Path) -> str:
    """Return `Locked.holder` of a lock that another process has."""
    try:
        with file.open(encoding="utf-8") as stream:
            found = re.fullmatch(r"(\d{1,7}) ([\w.-]{1,255})\n", stream.read(300))
    except (OSError, UnicodeDecodeError):
        return ""
    if found is None:
        return ""
    if found[2] != socket.gethostname():
        return f" (process {found[1]} on {found[2]})"
    # What a process left that ended before the present one had written.
    return f" (process {found[1]})" if psutil.pid_exists(int(found[1])) else ""
