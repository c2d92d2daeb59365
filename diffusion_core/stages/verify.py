"""Hash what is kept again: data, models, DVC's cache, checkpoints and the champion; say what rotted, and repair it."""

import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path

from diffusion_core.config.environment import Environment
from diffusion_core.data.dataset import ImageDataset
from diffusion_core.errors import UserError
from diffusion_core.lineage.checkpoints import LOCK, checkpoints, damaged, problem, set_aside, training_folders
from diffusion_core.lineage.dvc_cache import NoProject, dvc_cache
from diffusion_core.lineage.model_files import DESCRIPTION, WEIGHTS
from diffusion_core.lineage.saved_model import load_model
from diffusion_core.locks import Locked, exclusive_lock
from diffusion_core.registry.connection import NoStore, answering, connect
from diffusion_core.registry.outputs import outputs_of
from diffusion_core.registry.restoring import restore
from diffusion_core.registry.versions import Changed, downloaded, find_champion
from diffusion_core.stages.copies import Copies
from diffusion_core.stages.finding import REPAIR, Finding, Hashed, parts
from diffusion_core.stages.paths import MODELS, PREPARED
from diffusion_core.stages.verify_cache import verify_cache

logger = logging.getLogger(__name__)


def run(environment: Environment, repair: bool, as_json: bool) -> None:
    """Print what has rotted, as lines or as JSON; with `repair`, repair what can be had elsewhere.

    Raises:
        NoProject: this is not a project of DVC.
        SystemExit: with exit code 1 if something is rotten or could not be looked at.
    """
    findings: list[Finding] = []
    hashed = Hashed()
    searches = (
        _search("DVC's cache", verify_cache(environment, repair, hashed)),
        _search("the data and the model", _folders(repair, hashed)),
        # Before the next search, which sets more of them aside.
        _search("checkpoints that were set aside", _lost(environment)),
        _search("the checkpoints", _checkpoints(environment, repair, hashed)),
        _search(f"the champion of {environment.registered_model}", _champion(environment, repair, hashed)),
    )
    for finding in chain(*searches):
        findings.append(finding)
        if not as_json:
            print(f"verify: {finding}", flush=True)
    left = [finding for finding in findings if not finding.is_repaired]
    if as_json:
        sizes = {what: {"files": len(each), "bytes": sum(each)} for what, each in hashed.sizes.items()}
        found = [asdict(finding) for finding in findings]
        print(json.dumps({"whole": not left, "hashed": sizes, "findings": found}, indent=2))
    elif not left:
        repaired = f"{len(findings)} repaired; " if findings else ""
        print(f"verify: all is whole; {repaired}hashed: {hashed}")
    if left:
        sys.exit(1)


def _search(what: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """Yield the findings and, if they break off, one about that, so that the other searches continue."""
    try:
        yield from findings
    except NoProject:
        raise
    except (UserError, OSError) as error:
        problem, remedy = parts(error)
        yield Finding(what, f"it could not be looked at ({problem})", remedy)


def _folders(repair: bool, hashed: Hashed) -> Iterator[Finding]:
    """Compare the data and the model in the checkout with the hashes in their own descriptions."""
    loaders: tuple[tuple[Path, Path, str, Callable[[Path], object]], ...] = (
        (PREPARED, PREPARED, "*.npy", ImageDataset.open),
        (MODELS, MODELS / DESCRIPTION, WEIGHTS, load_model),
    )
    for folder, needed, files, load in loaders:
        if needed.exists():
            hashed.add(str(folder), folder.glob(files))
            try:
                load(folder)
            except UserError as error:
                problem, remedy = parts(error)
                first = REPAIR
                if repair:
                    # `verify_cache` has repaired what it may.
                    first = (
                        "`--repair` leaves a file that is missing or has a new time, as a stage may be at work: run"
                        f" `dvc checkout --force {folder}`"
                    )
                yield Finding(str(folder), problem, f"{first}, or {remedy}")


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


def _checkpoints(environment: Environment, repair: bool, hashed: Hashed) -> Iterator[Finding]:
    """Compare checkpoints with their manifests."""
    for folder in training_folders(environment.checkpoints):
        for path in checkpoints(folder):
            hashed.add("the checkpoints", path.glob("*"))
            try:
                damage = problem(path)
            except UserError as error:
                yield Finding(str(path), *parts(error))
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


def _champion(environment: Environment, repair: bool, hashed: Hashed) -> Iterator[Finding]:
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
            with downloaded(champion) as folder:
                hashed.add(f"the champion of {name}", folder.glob("*"))
                return
        except Changed as error:
            problem, remedy = parts(error)
        is_repaired = False
        if repair:
            try:
                is_repaired = any(restore(client, champion, folder) for folder in _models(outputs_of(champion)))
            except UserError as error:
                problem += f", and it could not be repaired ({error})"
    remedy = remedy if repair else f"{REPAIR}; if that fails, {remedy}"
    yield Finding(f"version {champion.version} of {name}", problem, remedy, is_repaired)


def _models(outputs: Mapping[str, str]) -> Iterator[Path]:
    """Yield folders that may have the model of a version with these outputs: the checkout's, and one from DVC.

    Raises:
        UserError: a DVC command runs, or the remote cannot be used.
    """
    names = (WEIGHTS, DESCRIPTION)
    if all((MODELS / name).exists() for name in names):
        yield MODELS
    entries = {name: outputs.get((MODELS / name).as_posix()) for name in names}
    with dvc_cache() as cache, tempfile.TemporaryDirectory() as temporary:
        for name, entry in entries.items():
            if entry is None or not (cache.is_whole(entry) or cache.restore(entry, bool(cache.remote_has([entry])))):
                return
            shutil.copyfile(cache.path(entry), Path(temporary, name))
        yield Path(temporary)
