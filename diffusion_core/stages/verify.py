"""Hash what is kept again: data, models, DVC's cache, checkpoints and the champion; say what rotted, and repair it."""

import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

from diffusion_core.config.environment import Environment
from diffusion_core.data.dataset import ImageDataset
from diffusion_core.errors import UserError
from diffusion_core.files import Locked, exclusive_lock
from diffusion_core.lineage.checkpoints import LOCK, checkpoints, damaged, problem, set_aside, training_folders
from diffusion_core.lineage.dvc_cache import Cache, NoProject, dvc_cache
from diffusion_core.lineage.saved_model import DESCRIPTION, WEIGHTS, load_model
from diffusion_core.registry.connection import NoStore, answering, connect
from diffusion_core.registry.versions import OUTPUT, Changed, downloaded, find_champion, named_by_versions, restore
from diffusion_core.stages.copies import Copies
from diffusion_core.stages.paths import MODELS, PREPARED

logger = logging.getLogger(__name__)

AGAIN = "say `diffusion verify --repair`, or make it again with `dvc repro --force` of its stage"
# DVC takes a rotten entry for whole, and would put it over the good file that a stage makes.
REMOVE = (
    "say `diffusion verify --repair`; if that has nowhere to take it from, remove this file, and then run `dvc repro`"
)


@dataclass(frozen=True)
class Finding:
    """Something that has rotted, or could not be looked at.

    Attributes:
        what: the file, folder or version.
        problem: what is wrong with it.
        remedy: what helps.
        is_repaired: whether it is whole again.
    """

    what: str
    problem: str
    remedy: str
    is_repaired: bool = False

    def __str__(self) -> str:
        return f"{self.what}: {self.problem}; " + ("repaired" if self.is_repaired else self.remedy)


def run(environment: Environment, repair: bool, as_json: bool) -> None:
    """Print what has rotted, as lines or as JSON; with `repair`, repair what can be had elsewhere.

    Raises:
        NoProject: this is not a project of DVC.
        SystemExit: with exit code 1 if something is rotten or could not be looked at.
    """
    findings: list[Finding] = []
    searches = (
        _search("DVC's cache", _cache(environment, repair)),
        _search("the data and the model", _folders()),
        # Before the next search, which sets more of them aside.
        _search("checkpoints that were set aside", _lost(environment)),
        _search("the checkpoints", _checkpoints(environment, repair)),
        _search(f"the champion of {environment.registered_model}", _champion(environment, repair)),
    )
    for finding in chain(*searches):
        findings.append(finding)
        if not as_json:
            print(f"verify: {finding}", flush=True)
    left = [finding for finding in findings if not finding.is_repaired]
    if as_json:
        print(json.dumps({"whole": not left, "findings": [asdict(finding) for finding in findings]}, indent=2))
    elif not left:
        print(f"verify: all is whole; {len(findings)} repaired" if findings else "verify: all is whole")
    if left:
        sys.exit(1)


def _search(what: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """Yield the findings and, if they break off, one about that, so that the other searches continue."""
    try:
        yield from findings
    except NoProject:
        raise
    except (UserError, OSError) as error:
        problem, remedy = _parts(error)
        yield Finding(what, f"it could not be looked at ({problem})", remedy)


def _parts(error: UserError | OSError) -> tuple[str, str]:
    """Return the problem that an error's sentence names, and the remedy behind its last colon."""
    problem, _, remedy = str(error).rpartition(": ")
    if isinstance(error, OSError) or not problem:
        return str(error), "correct that, and run this again"
    return problem, remedy


def _named(environment: Environment) -> tuple[set[str], set[str]]:
    """Return the outputs and the commits that registered versions name, as far as the store answers."""
    try:
        client = connect(environment, may_create=False)
        with answering(environment):
            named = named_by_versions(client)
    except UserError:
        # `_champion` says so. What the checkout and the branches name can be looked at without it.
        return set(), set()
    return (named.outputs, named.commits | named.only_commits) if named else (set(), set())


def _cache(environment: Environment, repair: bool) -> Iterator[Finding]:
    """Look at the entries of DVC's cache that are needed, and at the files of the checkout's outputs."""
    outputs, commits = _named(environment)
    with dvc_cache() as cache:
        needed = cache.needed(outputs, commits)
        # Only a whole list says which entries its output needs.
        lists = list(_entries(cache, cache.rotten(needed.unlisted), repair))
        yield from lists
        if any(finding.is_repaired for finding in lists):
            needed = cache.needed(outputs, commits)
        for what, why in needed.unread.items():
            yield Finding(what, f"it cannot be read ({why}), so nothing that it names was looked at", "correct it")
        yield from _entries(cache, cache.rotten(needed.entries - {*needed.unlisted}), repair)
        for entry, file in cache.rotten_files():
            found = Finding(
                str(file.relative_to(Path.cwd())),
                "its bytes changed without its time, so DVC takes it as unchanged",
                AGAIN,
            )
            yield replace(found, is_repaired=repair and cache.check_out(file, entry))


def _entries(cache: Cache, rotten: list[str], repair: bool) -> Iterator[Finding]:
    """Yield a finding for each rotten entry of DVC's cache."""
    try:
        in_remote, why_not = cache.remote_has(rotten), "the remote does not have it"
    except UserError as error:
        in_remote, why_not = set(), str(error)
    for entry in rotten:
        source = "the remote has it" if entry in in_remote else why_not
        problem = f"its bytes are not those of its name, and {source}"
        is_repaired = False
        if repair:
            try:
                is_repaired = cache.restore(entry, entry in in_remote)
            except UserError as error:
                problem = f"its bytes are not those of its name, the checkout does not have it, and {error}"
        yield Finding(str(cache.path(entry)), problem, REMOVE, is_repaired)


def _folders() -> Iterator[Finding]:
    """Compare the data and the model in the checkout with the hashes in their own descriptions."""
    loaders: tuple[tuple[Path, Path, Callable[[Path], object]], ...] = (
        (PREPARED, PREPARED, ImageDataset.open),
        (MODELS, MODELS / DESCRIPTION, load_model),
    )
    for folder, needed, load in loaders:
        if needed.exists():
            try:
                load(folder)
            except UserError as error:
                yield Finding(str(folder), *_parts(error))


def _lost(environment: Environment) -> Iterator[Finding]:
    """Look for damaged checkpoints that were set aside, and that nothing has brought back."""
    for folder in training_folders(environment.checkpoints):
        for path in sorted(damaged(folder)):
            if not path.with_name(path.name.partition(".")[0]).exists():
                yield Finding(
                    str(path),
                    "it was damaged and set aside, and is lost",
                    "remove it once you need it no longer; `diffusion clean --remove` does when it is old",
                )


def _checkpoints(environment: Environment, repair: bool) -> Iterator[Finding]:
    """Compare checkpoints with their manifests."""
    for folder in training_folders(environment.checkpoints):
        for path in checkpoints(folder):
            try:
                damage = problem(path)
            except UserError as error:
                yield Finding(str(path), *_parts(error))
                continue
            # A training that runs may have removed it meanwhile.
            if damage is not None and path.exists():
                found = Finding(str(path), damage, "the training resumes from the checkpoint before it")
                try:
                    found = replace(found, is_repaired=repair and _restored(environment, path))
                except (UserError, OSError) as error:
                    found = replace(found, problem=f"{damage}, and its copy cannot be fetched ({error})")
                yield found


def _restored(environment: Environment, path: Path) -> bool:
    """Fetch the copy of a damaged checkpoint, or set it aside; return whether it is whole. Not while its training runs.

    Raises:
        UserError: the bucket for copies cannot be used; the checkpoint stays for the next time.
    """
    try:
        with exclusive_lock(path.parent / LOCK):
            # A training may have replaced or removed it meanwhile.
            if not path.exists() or problem(path) is None:
                return True
            copies = Copies.of(environment, path.parent)
            if copies is not None and copies.fetch_one(path.name):
                return True
            set_aside(path)
    except Locked:
        pass
    return False


def _champion(environment: Environment, repair: bool) -> Iterator[Finding]:
    """Compare the files of the champion with the hash that was registered."""
    name = environment.registered_model
    try:
        client = connect(environment, may_create=False)
    except NoStore as error:
        logger.warning("no champion was looked at, because %s", error)
        return
    with answering(environment):
        champion = find_champion(client, name)
        if champion is None:
            return
        try:
            with downloaded(champion):
                return
        except Changed as error:
            problem, remedy = _parts(error)
        is_repaired = False
        if repair:
            try:
                is_repaired = any(restore(client, champion, folder) for folder in _models(champion.tags))
            except UserError as error:
                problem += f", and it could not be repaired ({error})"
    yield Finding(f"version {champion.version} of {name}", problem, remedy, is_repaired)


def _models(tags: Mapping[str, str]) -> Iterator[Path]:
    """Yield folders that may have the model of a version with these tags: the checkout's, and one from DVC's cache."""
    names = (WEIGHTS, DESCRIPTION)
    if all((MODELS / name).exists() for name in names):
        yield MODELS
    with dvc_cache() as cache, tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        entries = {name: tags.get(f"{OUTPUT}{(MODELS / name).as_posix()}") for name in names}
        if all(entry is not None and cache.path(entry).exists() for entry in entries.values()):
            for name, entry in entries.items():
                shutil.copyfile(cache.path(str(entry)), folder / name)
            yield folder
