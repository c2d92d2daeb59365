"""Files that are either whole or not there, that outlive a crash, and that one process has at a time."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock, Timeout


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder` and, when the block ends well, put it in the place of `folder`.

    When the block raises, the new folder is removed and `folder` stays as it was. What a killed process left beside
    `folder` is cleared away first; if it was killed between taking the old folder away and putting the new one there,
    the old one is put back.
    """
    new, old = (folder.with_name(f".{folder.name}.{word}-{os.getpid()}") for word in ("tmp", "old"))
    _sweep(folder)
    new.mkdir(parents=True)
    try:
        yield new
    except BaseException:
        shutil.rmtree(new)
        raise
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    if old.exists():
        shutil.rmtree(old)


def _sweep(folder: Path) -> None:
    """Clear away what dead processes left of replacing `folder`."""
    for word in ("tmp", "old"):
        for stale in folder.parent.glob(f".{folder.name}.{word}-*"):
            pid = int(stale.name.rpartition("-")[2])
            # Containers number their processes alike: a folder that bears this process's own id is stale too.
            if pid != os.getpid() and psutil.pid_exists(pid):
                continue
            if word == "old" and not folder.exists():
                stale.rename(folder)
            else:
                shutil.rmtree(stale)


@contextmanager
def replaced_files(files: Sequence[Path]) -> Iterator[Path]:
    """Yield an empty folder and, when the block ends well, move the files of these names from it to their places.

    When the block raises, nothing is moved. What killed processes left beside the first file is removed.
    """
    folder = files[0].with_name(f".{files[0].name}.tmp-{os.getpid()}")
    _sweep(files[0])
    folder.mkdir(parents=True)
    try:
        yield folder
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            (folder / file.name).replace(file)
    finally:
        shutil.rmtree(folder)


def write_whole(file: Path, content: str, mode: int = 0o666) -> None:
    """Write text to a file beside `file`, flush it to the disk, and put it in the place of `file`.

    Args:
        file: is afterwards either as it was or has all of `content`.
        content: written as UTF-8.
        mode: of the new file, from its first moment; what the process's umask takes away is taken away.
    """
    beside = file.with_name(f".{file.name}.tmp-{os.getpid()}")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(file)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    flush(file.parent)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Locked(Exception):
    """Another process holds a lock."""


@contextmanager
def exclusive_lock(file: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep other processes out for the block; the lock of a process that was killed ends with it.

    Args:
        file: the lock; it and its folder are made if they are missing, and stay.
        wait: until the other process has ended, instead of raising.

    Raises:
        Locked: another process holds it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise Locked(f"another process holds {file}") from None
    try:
        yield
    finally:
        lock.release()


def sha256_of(file: Path) -> str:
    """Return the hash of a file's bytes as hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
