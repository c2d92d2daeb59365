"""Show, and remove on demand, old checkpoints, downloads, leftovers and entries of DVC's cache that nothing names.

What a registered version names is needed, and what a branch or the checkout names. What is young is left, because a run
that has not ended may need it.
"""

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.files import Locked, discard, exclusive_lock
from diffusion_core.lineage.checkpoints import FINISHED, LOCK, damaged
from diffusion_core.lineage.dvc_cache import dvc_cache
from diffusion_core.lineage.outbox import OUTBOX, Outbox
from diffusion_core.stages.paths import METRICS, MODELS, PLOTS, PREPARED, RAW, REFERENCE, SAMPLES
from diffusion_core.stages.verify import named_by_versions

DAY = 24 * 3600
# What processes leave beside the files and folders that they replace; the number is the process's.
LEFTOVER = re.compile(r"\..*\.(tmp|old|trash)-(?P<process>\d+)|step-\d+\.tmp-(?P<saving>\d+)")
# Folders of a file's parents that replaced files lie in.
PLACES = sorted(
    {each.parent for each in (RAW, PREPARED, REFERENCE, MODELS / "x", PLOTS / "x", METRICS, SAMPLES / "x", SAMPLES)}
)


@dataclass(frozen=True)
class Unneeded:
    """A file or a folder that nothing needs.

    Attributes:
        path: its path.
        why: what it is.
        size: bytes.
    """

    path: Path
    why: str
    size: int


def run(environment: Environment, days: int, remove: bool) -> None:
    """Print what is not needed and older than `days`; with `remove`, remove it.

    Raises:
        UserError: this is not a project of DVC, or a DVC command runs.
    """
    before = time.time() - days * DAY
    total = 0
    for each in (*_checkpoints(environment, before), *_downloads(environment, before), *_leftovers(environment)):
        if remove and not _removed(each.path):
            continue
        total += each.size
        print(f"clean: {each.path}, {each.size / 1e6:,.1f} MB: {each.why}")
    total += _cache(environment, before, remove)
    print(f"clean: {total / 1e6:,.1f} MB " + ("removed" if remove else "may go: say `diffusion clean --remove`"))


def _checkpoints(environment: Environment, before: float) -> Iterator[Unneeded]:
    """Yield the folders of trainings that ended or were given up, and checkpoints that were set aside."""
    for folder in sorted(path for path in environment.checkpoints.glob("*") if path.is_dir()):
        with suppress(Locked), exclusive_lock(folder / LOCK):
            if (folder / OUTBOX).exists() and not Outbox(folder / OUTBOX).is_empty():
                print(f"clean: {folder} stays: entries wait in it for the tracking store; say `diffusion replay`")
            elif _changed(folder) < before:
                why = "checkpoints of a finished training" if (folder / FINISHED).exists() else "a training given up"
                yield Unneeded(folder, why, _size(folder))
            else:
                for path in damaged(folder):
                    if _changed(path) < before:
                        yield Unneeded(path, "a damaged checkpoint", _size(path))


def _downloads(environment: Environment, before: float) -> Iterator[Unneeded]:
    """Yield downloads that no ingest has touched; a later ingest would fetch them again."""
    if environment.downloads is not None:
        for place in sorted(path for path in environment.downloads.expanduser().glob("*") if path.is_dir()):
            # An ingest that found all of it takes the lock, and changes nothing else.
            if max([_changed(place), *(lock.stat().st_mtime for lock in place.glob(LOCK))]) < before:
                yield Unneeded(place, "downloads of a source that is no longer used", _size(place))


def _leftovers(environment: Environment) -> Iterator[Unneeded]:
    """Yield what killed processes have left."""
    for place in (*PLACES, environment.checkpoints, *environment.checkpoints.glob("*")):
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            found = LEFTOVER.fullmatch(path.name)
            if found and not psutil.pid_exists(int(found["process"] or found["saving"])):
                yield Unneeded(path, "left by a process that was killed", _size(path))


def _cache(environment: Environment, before: float, remove: bool) -> int:
    """Print, and remove on demand, the entries of DVC's cache that are not needed; return their bytes."""
    try:
        outputs, commits = named_by_versions(environment)
    except UserError as error:
        print(f"clean: DVC's cache stays, because the registered versions are not known ({error})")
        return 0
    with dvc_cache() as cache:
        needed = cache.needed(outputs, commits)
        unneeded = {entry: file for entry, file in cache.entries() if entry not in needed and _changed(file) < before}
        if environment.dvc_cache is not None:
            # Other checkouts may share it. What the remote has can be pulled again.
            there = cache.remote_has(unneeded)
            print(
                f"clean: {len(unneeded) - len(there):,} entries of {cache.folder} stay, because the remote lacks them"
            )
            unneeded = {entry: unneeded[entry] for entry in there}
        size = sum(file.stat().st_size for file in unneeded.values())
        if remove:
            for file in unneeded.values():
                file.unlink()
    if unneeded:
        why = "no branch, tag or registered version names them"
        print(f"clean: {len(unneeded):,} entries of {cache.folder}, {size / 1e6:,.1f} MB: {why}")
    return size


def _removed(path: Path) -> bool:
    """Remove a file or a folder that no training uses; return whether it was."""
    if not path.is_dir():
        path.unlink()
    elif (path / LOCK).exists():
        try:
            with exclusive_lock(path / LOCK):
                discard(path)
        except Locked:
            return False
    else:
        shutil.rmtree(path)
    return True


def _changed(path: Path) -> float:
    """Return the time of the last change of a file, or of the newest file in a folder."""
    files = path.rglob("*") if path.is_dir() else ()
    # Taking a lock does not count.
    return max((file.lstat().st_mtime for file in files if file.name != LOCK), default=path.lstat().st_mtime)


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file())
