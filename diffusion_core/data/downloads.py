"""Files that are fetched from a bucket, until data/raw has them.

They lie in a persistent folder, so that an interrupted fetch continues. A file's name is a digest of its object; a
complete file has its own sha256 as suffix.
"""

import math
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from diffusion_core.files import sha256_of
from diffusion_core.locks import Locked, exclusive_lock
from diffusion_core.parallel import in_parallel

HASHING_THREADS = 4
LOCK = ".lock"


@contextmanager
def only_download(folder: Path) -> Iterator[None]:
    """Lock the folder for the block, and remove incomplete files of killed processes.

    If another process has the lock, print a line and wait for it.
    """
    with ExitStack() as held:
        try:
            held.enter_context(exclusive_lock(folder / LOCK))
        except Locked:
            print(f"ingest: waits until another process has fetched into {folder}", flush=True)
            held.enter_context(exclusive_lock(folder / LOCK, seconds=math.inf))
        # Before fetching, because they may fill the disk.
        for leftover in folder.glob(".*.tmp-*"):
            leftover.unlink()
        yield


def arrived(folder: Path, digests: Collection[str]) -> dict[str, str]:
    """Return the sha256 of each complete and undamaged file, by the digest of its object."""
    files = [file for file in folder.iterdir() if file.suffix and file.stem in digests]
    whole = in_parallel(lambda file: sha256_of(file) == file.suffix[1:], files, HASHING_THREADS)
    return {file.stem: file.suffix[1:] for file, is_whole in zip(files, whole, strict=True) if is_whole}


def keep_only(folder: Path, digests: Collection[str]) -> None:
    """Remove all files from the folder except the lock and the complete files of these objects."""
    for file in folder.iterdir():
        if file.name != LOCK and not file.is_dir() and not (file.suffix and file.stem in digests):
            file.unlink()
