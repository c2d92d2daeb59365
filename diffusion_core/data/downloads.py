"""What has arrived from a bucket, and what of it lies in data/raw.

An object's file is called by a digest of the object and, when all of it has arrived, by its own sha256 as suffix. It
lies in a folder that outlives the process. `.s3.json` is versioned with the images of data/raw: a fresh clone that has
pulled them knows as much of the bucket as the machine that fetched them.
"""

import json
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
    """One object as it was fetched; `size` in bytes."""

    etag: str
    size: int
    sha256: str


def read_index(folder: Path, url: str) -> dict[str, Entry]:
    """Return the entries by the files' paths below `folder`; none where they are of another address or damaged."""
    try:
        content = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return {path: Entry(**entry) for path, entry in content["objects"].items()} if content["url"] == url else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # Everything is fetched anew, and this file is written anew.
        return {}


def write_index(folder: Path, url: str, entries: Mapping[str, Entry]) -> None:
    """Write the entries, alike for the same ones."""
    content = {"url": url, "objects": {path: asdict(entries[path]) for path in sorted(entries)}}
    (folder / INDEX).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


HASHING_THREADS = 4
LOCK = ".lock"


@contextmanager
def only_download(folder: Path) -> Iterator[None]:
    """Keep other processes out of the folder for the block, and remove what killed downloads left there.

    Whoever comes second waits, and then finds what the first has fetched.
    """
    with ExitStack() as held:
        try:
            held.enter_context(exclusive_lock(folder / LOCK))
        except Locked:
            print(f"ingest: waits until another process has fetched into {folder}", flush=True)
            held.enter_context(exclusive_lock(folder / LOCK, wait=True))
        # Now and not at the end: they may be what fills the disk.
        for leftover in folder.glob(".*.tmp-*"):
            leftover.unlink()
        yield


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
