"""What has arrived from a bucket, one file an object, in a folder that outlives the process.

A file is called by a digest of the object and, when it has all arrived, by its own sha256 as suffix.
"""

import hashlib
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from diffusion_core.threads import in_parallel

HASHING_THREADS = 4
LOCK = ".lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Have the folder to oneself for the block, made if it is missing, and without what killed downloads left.

    Whoever comes second waits, and then finds what the first has fetched. The hold of a killed process ends with it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"ingest: waits until another process has fetched into {folder}", flush=True)
        lock.acquire()
    try:
        # Now and not at the end: they may be what fills the disk.
        for leftover in folder.glob(".*.tmp-*"):
            leftover.unlink()
        yield
    finally:
        lock.release()


def arrived(folder: Path, digests: Collection[str]) -> dict[str, str]:
    """Return the sha256 of each of these objects that has arrived and is still whole, by its digest."""
    files = [file for file in folder.iterdir() if file.suffix and file.stem in digests]
    whole = in_parallel(lambda file: sha256_of(file) == file.suffix[1:], files, HASHING_THREADS)
    return {file.stem: file.suffix[1:] for file, is_whole in zip(files, whole, strict=True) if is_whole}


def keep_only(folder: Path, names: Collection[str]) -> None:
    """Remove every other file."""
    for file in folder.iterdir():
        if file.name not in names and file.name != LOCK and not file.is_dir():
            file.unlink()


def link(file: Path, place: Path) -> None:
    """Let `place` be the same file, or a copy of it where nothing can be linked."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        # DVC may have put a link to its cache there.
        os.link(file.resolve(), place)
    except OSError:
        shutil.copyfile(file, place)


def sha256_of(file: Path) -> str:
    """Return the hash as hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
