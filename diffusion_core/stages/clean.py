"""Show, and remove on demand, old checkpoints, downloads, leftovers and entries of DVC's cache that nothing names.

What a registered version names is needed, and what a branch or the checkout names. What is young is left, because a run
that has not ended may need it.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from diffusion_core.address import without_userinfo
from diffusion_core.config.environment import Environment
from diffusion_core.data.sources.web import downloads_folder
from diffusion_core.errors import UserError
from diffusion_core.files import discard, discarded, leftovers
from diffusion_core.lineage.checkpoints import FINISHED, LOCK, checkpoints, damaged
from diffusion_core.lineage.dvc_cache import Cache, dvc_cache
from diffusion_core.lineage.identity import FILE
from diffusion_core.lineage.model_files import DESCRIPTION, WEIGHTS
from diffusion_core.lineage.outbox import OUTBOX, Outbox
from diffusion_core.locks import Locked, exclusive_lock
from diffusion_core.metrics.views import CACHE as FEATURES
from diffusion_core.registry.connection import DEFAULT_STORE, answering, connect, tracking_uri
from diffusion_core.registry.outputs import Named, named_by_versions
from diffusion_core.stages.paths import (
    LOSS,
    METRICS,
    METRICS_ORIGIN,
    MODELS,
    PLOTS,
    PREPARED,
    PROMOTION,
    PUBLICATION,
    RAW,
    REFERENCE,
    RUN_INFO,
    SAMPLES,
)

DAY = 24 * 3600
BYTES_SHOWN_AS_MB = 1_000_000
# What processes replace; the first file of several stands for all.
REPLACED = (
    *(RAW, PREPARED, REFERENCE, MODELS, MODELS / WEIGHTS, MODELS / DESCRIPTION, RUN_INFO, SAMPLES, PLOTS, LOSS),
    *(METRICS, METRICS_ORIGIN, PUBLICATION, PROMOTION, DEFAULT_STORE),
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
    now = time.time()
    before = now - days * DAY
    total = 0
    # Each generator holds the lock of what it yields.
    locked = (_checkpoints(environment, before), _downloads(environment, before), _features(before))
    # A process of another container, whose id is unknown here, may still write what is younger than a day.
    for each in chain(*locked, _leftovers(environment, min(before, now - DAY))):
        if remove:
            _remove(each.path)
        total += each.size
        print(f"clean: {each.path}, {_shown(each.size)}: {each.why}")
    total += _cache(environment, before, remove)
    print(f"clean: {_shown(total)} " + ("removed" if remove else "may go: say `diffusion clean --remove`"))


def _checkpoints(environment: Environment, before: float) -> Iterator[Unneeded]:
    """Yield the folders of trainings that ended or were given up, damaged checkpoints, and what killed trainings left.

    While a training's folder is locked here, no process writes a checkpoint in it.
    """
    for folder in sorted(path for path in environment.checkpoints.glob("[!.]*") if _is_training(path)):
        with suppress(Locked), _locked(folder):
            if not all(outbox.is_empty() for outbox in Outbox.of(folder)):
                print(f"clean: {folder} stays: entries wait in it for the tracking store; say `diffusion replay`")
            elif _changed(folder) < before:
                why = "checkpoints of a finished training" if (folder / FINISHED).exists() else "a training given up"
                yield Unneeded(folder, why, _size(folder))
            else:
                left = dict.fromkeys(damaged(folder), "a damaged checkpoint")
                left |= dict.fromkeys(folder.glob("step-*.tmp-*"), "left by a training that was killed")
                left |= dict.fromkeys(discarded(folder), "left by a training that was killed")
                for path, why in sorted(left.items()):
                    if _changed(path) < before:
                        yield Unneeded(path, why, _size(path))


def _features(before: float) -> Iterator[Unneeded]:
    """Yield features of real images that were not made lately; they are computed again where they are needed."""
    for file in sorted(FEATURES.glob("*.safetensors")):
        if _changed(file) < before:
            yield Unneeded(file, "features of real images, which evaluate computes again", _size(file))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a training's folder; raises `Locked` if another process has it or the folder is another user's."""
    with ExitStack() as held:
        try:
            held.enter_context(exclusive_lock(folder / LOCK))
        except OSError as error:
            print(f"clean: {folder} stays: {error.filename} cannot be opened ({error.strerror})")
            raise Locked from None
        yield


def _is_training(folder: Path) -> bool:
    """Return whether a folder is a training's: the user may have others beside it."""
    if not folder.is_dir() or folder.is_symlink():
        return False
    return bool(checkpoints(folder)) or any((folder / name).exists() for name in (FILE, FINISHED, OUTBOX))


def _downloads(environment: Environment, before: float) -> Iterator[Unneeded]:
    """Yield downloads that no ingest has touched; a later ingest would fetch them again."""
    for lock in sorted(downloads_folder(environment).glob(f"[!.]*/{LOCK}")):
        place = lock.parent
        # An ingest that found all of it takes the lock, and changes nothing else.
        if not place.is_symlink() and max(_changed(place), lock.stat().st_mtime) < before:
            with suppress(Locked), exclusive_lock(lock):
                yield Unneeded(place, "downloads of a source that is no longer used", _size(place))


def _leftovers(environment: Environment, before: float) -> Iterator[Unneeded]:
    """Yield what killed processes have left beside what they replaced, or discarded."""
    found = {path for each in (*REPLACED, *PLOTS.glob("[!.]*")) for path in leftovers(each)}
    for path in sorted(found | {*discarded(environment.checkpoints)}):
        if _changed(path) < before:
            yield Unneeded(path, "left by a process that was killed", _size(path))


def _cache(environment: Environment, before: float, remove: bool) -> int:
    """Print, and remove on demand, the entries of DVC's cache that are not needed; return their bytes."""
    store = without_userinfo(tracking_uri(environment))
    try:
        client = connect(environment, may_create=False)
        with answering(environment):
            named = named_by_versions(client)
    except UserError as error:
        print(f"clean: DVC's cache stays, because the registered versions are not known ({error})")
        return 0
    if named is None:
        print(
            f"clean: DVC's cache stays, because {store} has no registered version: if yours are in another store, name"
            " it in DIFFUSION_TRACKING_URI"
        )
        return 0
    with dvc_cache() as cache:
        try:
            unneeded = _unneeded(cache, named, before, environment.dvc_cache is not None)
        except UserError as error:
            print(f"clean: DVC's cache stays: {error}")
            return 0
        size = sum(file.stat().st_size for file in unneeded)
        if remove:
            for file in unneeded:
                file.unlink(missing_ok=True)
    if unneeded:
        why = f"no branch, tag or version registered in {store} names them"
        print(f"clean: {len(unneeded):,} entries of {cache.folder}, {_shown(size)}: {why}")
    return size


def _unneeded(cache: Cache, named: Named, before: float, is_shared: bool) -> list[Path]:
    """Return the old entries of DVC's cache that are not needed, and old leftovers in it.

    Raises:
        UserError: what is needed is not known, or the remote of a shared cache cannot be asked.
    """
    needed = cache.needed(named.outputs, named.commits, named.only_commits)
    remote_lists = cache.remote_has(each for each in needed.unlisted if not cache.path(each).exists())
    if [each for each in remote_lists if cache.restore(each, from_remote=True)]:
        needed = cache.needed(named.outputs, named.commits, named.only_commits)
    if needed.unknown:
        raise UserError(f"what is needed is not known, because {needed.unknown}")
    unneeded = {
        entry: file for entry, file in cache.entries() if entry not in needed.entries and _changed(file) < before
    }
    if is_shared or cache.is_shared:
        # Other checkouts may use it. What the remote has can be pulled again.
        in_remote = cache.remote_has(unneeded)
        lacking = [file for entry, file in unneeded.items() if entry not in in_remote]
        if lacking:
            size = _shown(sum(file.stat().st_size for file in lacking))
            print(f"clean: {len(lacking):,} entries of {cache.folder}, {size}, stay, because the remote lacks them")
        unneeded = {entry: unneeded[entry] for entry in in_remote}
    return [*unneeded.values(), *(file for file in cache.leftovers() if _changed(file) < before)]


def _remove(path: Path) -> None:
    """Remove a file or a folder, which another process may have removed meanwhile."""
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            discard(path)
        else:
            path.unlink()


def _changed(path: Path) -> float:
    """Return the time of the last change of a file, or of the newest file in a folder."""
    files = path.rglob("*") if path.is_dir() else ()
    # Taking a lock does not count.
    return max((file.lstat().st_mtime for file in files if file.name != LOCK), default=path.lstat().st_mtime)


def _shown(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= BYTES_SHOWN_AS_MB else f"{size:,} bytes"


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file())
