"""Outputs that are either whole or not there."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil


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
