"""The files fetched from a bucket, and the index of those in data/raw.

Files are fetched into a persistent folder. A file's name is a digest of its object; a complete file has its own sha256
as suffix. `.s3.json` is versioned with the images of data/raw, so that a fresh clone does not fetch them again.
"""

import json
import math
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from diffusion_core.files import Locked, exclusive_lock, sha256_of
from diffusion_core.parallel import in_parallel

INDEX = ".s3.json"


@dataclass(frozen=True)
class Entry:
    """A fetched object.

    Attributes:
        etag: the store's ETag, without quotes.
        size: bytes.
        sha256: sha256 of the bytes, in hexadecimal.
    """

    etag: str
    size: int
    sha256: str


def read_index(folder: Path, url: str) -> dict[str, Entry]:
    """Return the entries by path below `folder`; empty if the index is missing, damaged or of another address."""
    try:
        content = json.loads((folder / INDEX).read_bytes())
        return {path: Entry(**entry) for path, entry in content["objects"].items()} if content["url"] == url else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        # Everything is fetched again, and the index is written again.
        return {}


def write_index(folder: Path, url: str, entries: Mapping[str, Entry]) -> None:
    """Write the index; equal entries give equal bytes."""
    content = {"url": url, "objects": {path: asdict(entries[path]) for path in sorted(entries)}}
    (folder / INDEX).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


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


def keep_only(folder: Path, names: Collection[str]) -> None:
    """Remove all files from the folder except `names` and the lock."""
    for file in folder.iterdir():
        if file.name not in names and file.name != LOCK and not file.is_dir():
            file.unlink()


def link(file: Path, place: Path) -> None:
    """Make `place` a hard link to the file, or a copy if linking fails."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        # The file may be DVC's symbolic link to its cache.
        os.link(file.resolve(), place)
    except OSError:
        shutil.copyfile(file, place)
