"""Folders of checkpoints: which are whole, which are the newest, which may go.

A training's folder has a folder `step-N` for each checkpoint, whose `manifest.json` has the size and sha256 of each
file. Folders are renamed before they are removed, so that no kill leaves one that looks damaged.

The checkpoints of a finished training stay, because DVC records a model after the stage, and deletes one that it has
not recorded. The next training of something else removes them, but for milestones. A training that begins again does
not count as finished.
"""

import errno
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from diffusion_core.documents import read_json
from diffusion_core.errors import Unavailable
from diffusion_core.files import (
    DISK_FAILS,
    discard,
    disk_refusal,
    flush,
    naming,
    read_differently,
    sha256_of,
    write_whole,
)
from diffusion_core.locks import Locked, exclusive_lock

Result = TypeVar("Result")

# If the newest is damaged, one more is left.
KEEP = 2
MANIFEST = "manifest.json"
# A file that marks a checkpoint that stays when newer ones are saved.
MILESTONE = "milestone"
# A file that marks the folder of a finished training.
FINISHED = "finished"
LOCK = ".lock"
# Seconds for which a process that does not train may hold the lock.
LONGEST_LOOK = 3.0
# Seconds in which DVC, in another checkout, has recorded the model of a training that ended.
SECONDS_TO_RECORD = 3600.0
# Seconds before a file is read again that the disk did not give.
SECONDS_TO_RECOVER = 5.0
# Errors that say that a file is missing, or that its disk or file system is damaged. Others pass, or are of rights: the
# file is whole.
DAMAGE = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
    *DISK_FAILS,
)


@contextmanager
def only_training(folder: Path) -> Iterator[None]:
    """Lock a training's folder against other processes while the block runs.

    Raises:
        Unavailable: another process has the lock.
    """
    try:
        with exclusive_lock(folder / LOCK, seconds=LONGEST_LOOK):
            yield
    except Locked as locked:
        raise Unavailable(
            f"another training of the same data and parameters keeps its checkpoints in {folder}{locked.holder}, or"
            " `diffusion verify --repair` repairs them: wait until it ends, or stop it"
        ) from None


def training_folders(root: Path) -> list[Path]:
    """Return the folders of trainings in `root`, without those that are being discarded."""
    return sorted(path for path in root.glob("[!.]*") if path.is_dir())


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a training's folder, newest first, damaged or not."""
    return sorted((path for path in folder.glob("step-*") if path.name[5:].isdigit()), reverse=True)


def step_of(path: Path) -> int:
    """Return the step of a checkpoint's folder."""
    return int(path.name[5:])


def newest_step(folder: Path) -> int | None:
    """Return the step of the newest checkpoint in a training's folder, damaged or not, or None if there is none."""
    return next(map(step_of, checkpoints(folder)), None)


def newest_whole_step(folder: Path) -> int:
    """Return the step of the newest checkpoint in a training's folder that is not damaged, or 0 if there is none."""
    return next((step_of(path) for path in checkpoints(folder) if problem(path) is None), 0)


def problem(path: Path, known: Mapping[str, str] | None = None) -> str | None:
    """Return why a checkpoint is damaged, or None if it is whole.

    Args:
        path: its folder.
        known: the sha256 by name of files that were hashed while they were written.

    Raises:
        UserError: a file cannot be read, which says nothing about its content.
    """
    try:
        files = read_twice(lambda: read_json(path / MANIFEST))["files"]
        for name, expected in files.items():
            if read_twice(partial(fingerprint, path / name, (known or {}).get(name))) != expected:
                return f"{name} differs from its manifest"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST}: {damage_of(path, error)}"
    return None


def read_twice(read: Callable[[], Result]) -> Result:
    """Return what `read` returns; after an error of input or output (EIO), pause and read once more.

    On a network's filesystem the error passes. On a disk it is damage, so the second one is raised.
    """
    try:
        return read()
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        time.sleep(SECONDS_TO_RECOVER)
        return read()


def damage_of(path: Path, error: Exception) -> str:
    """Return which damage an error shows that reading a checkpoint raised.

    Raises:
        UserError: it shows none, because whole files raise it too, for example if too many are open.
    """
    if isinstance(error, OSError) and error.errno not in DAMAGE:
        raise disk_refusal(error) or Unavailable(
            f"the checkpoint {path} cannot be read now ({error.strerror or error}): correct that, and run this again"
        )
    return str(error)


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint, so that it is no longer used, and return its new path."""
    free = (path.with_name(f"{path.name}.damaged-{number}") for number in count())
    return path.rename(next(each for each in free if not each.exists()))


def damaged(folder: Path) -> list[Path]:
    """Return the damaged checkpoints that were set aside in a training's folder."""
    return [path for path in folder.glob("step-*.damaged*") if path.is_dir()]


def remove_old(folder: Path, keep: int, up_to: int | None = None) -> None:
    """Remove all but the newest `keep` checkpoints and the milestones; those after step `up_to` stay too."""
    for old in [path for path in checkpoints(folder) if up_to is None or step_of(path) <= up_to][keep:]:
        if not (old / MILESTONE).exists():
            discard(old)


def mark_finished(folder: Path) -> None:
    """Note in a training's folder that it is finished, so that the next one may remove it."""
    write_whole(folder / FINISHED, "")


def mark_unfinished(folder: Path) -> None:
    """Note in a training's folder that it trains again, so that the next one may not remove it."""
    (folder / FINISHED).unlink(missing_ok=True)
    flush(folder)


def is_finished(folder: Path, seconds: float = 0.0) -> bool:
    """Return whether a folder's training ended at least `seconds` ago, and has not begun again."""
    try:
        return (folder / FINISHED).stat().st_mtime <= time.time() - seconds
    except FileNotFoundError:
        return False


def remove_finished(folder: Path) -> None:
    """Remove the folder of a finished training, or all but its milestones. Only with its lock."""
    if any((path / MILESTONE).exists() for path in checkpoints(folder)):
        remove_old(folder, keep=0)
    else:
        discard(folder)


def fingerprint(file: Path, sha256: str | None = None) -> dict[str, Any]:
    """Return the size and sha256 of a file, as a manifest has them; a known `sha256` is not computed again."""
    return {"size": file.stat().st_size, "sha256": sha256 or sha256_of(file)}


def write_json(file: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Write JSON, flush it to disk, compare what is there, and return its fingerprint.

    Raises:
        OSError: the disk is full or refuses, or gives back other bytes.
    """
    text = (json.dumps(content, indent=2) + "\n").encode()
    with naming(file):
        file.write_bytes(text)
    flush(file)
    if file.read_bytes() != text:
        raise read_differently(file)
    return fingerprint(file)
