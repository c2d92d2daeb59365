"""Hash what is kept again: data, models, DVC's cache, checkpoints and the champion; say what rotted, and repair it."""

import json
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
from diffusion_core.lineage.checkpoints import LOCK, checkpoints, problem, set_aside
from diffusion_core.lineage.dvc_cache import Cache, dvc_cache
from diffusion_core.lineage.saved_model import DESCRIPTION, WEIGHTS, load_model
from diffusion_core.registry.connection import answering, connect
from diffusion_core.registry.versions import Changed, all_versions, downloaded, find_champion, restore
from diffusion_core.stages.copies import Copies
from diffusion_core.stages.paths import MODELS, PREPARED

COMMIT = "git_commit"
OUTPUT = "dvc."


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
        UserError: this is not a project of DVC, or a DVC command runs.
        SystemExit: with exit code 1 if something is rotten or could not be looked at.
    """
    findings: list[Finding] = []
    looks = (_cache(environment, repair), _folders(), _checkpoints(environment, repair), _champion(environment, repair))
    for finding in chain(*looks):
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


def named_by_versions(environment: Environment) -> tuple[set[str], set[str]]:
    """Return the hashes of outputs and the commits that registered versions name.

    Raises:
        UserError: the tracking store cannot be used.
    """
    client = connect(environment)
    with answering(environment):
        versions = all_versions(client, environment.registered_model)
    tags = [dict(version.tags) for version in versions]
    outputs = {value for each in tags for name, value in each.items() if name.startswith(OUTPUT)}
    return outputs, {each[COMMIT] for each in tags if COMMIT in each}


def _cache(environment: Environment, repair: bool) -> Iterator[Finding]:
    """Look at the entries of DVC's cache that are needed, and at the files of the checkout's outputs."""
    try:
        outputs, commits = named_by_versions(environment)
    except UserError:
        # `_champion` says so. What the checkout and the branches name can be looked at without it.
        outputs, commits = set(), set()
    with dvc_cache() as cache:
        needed = cache.needed(outputs, commits)
        rotten = cache.rotten(needed)
        there = cache.remote_has(rotten)
        for entry in rotten:
            path = cache.path(entry)
            source = "the remote has it" if entry in there else "the remote does not have it"
            found = Finding(
                str(path),
                f"its bytes are not those of its name, and {source}",
                "say `diffusion verify --repair`, or make it again with `dvc repro --force` of its stage",
            )
            yield replace(found, is_repaired=repair and cache.restore(entry, entry in there))
        yield from _checked_out(cache, repair)


def _checked_out(cache: Cache, repair: bool) -> Iterator[Finding]:
    for file, entry in cache.rotten_files():
        found = Finding(
            str(file.relative_to(Path.cwd())),
            "its bytes changed without its time, so DVC takes it as unchanged",
            "say `diffusion verify --repair`, or make it again with `dvc repro --force` of its stage",
        )
        yield replace(found, is_repaired=repair and cache.check_out(file, entry))


def _folders() -> Iterator[Finding]:
    """Compare the data and the model in the checkout with the hashes in their own descriptions."""
    looks: tuple[tuple[Path, Path, Callable[[Path], object]], ...] = (
        (PREPARED, PREPARED, ImageDataset.open),
        (MODELS, MODELS / DESCRIPTION, load_model),
    )
    for folder, needed, look in looks:
        if needed.exists():
            try:
                look(folder)
            except UserError as error:
                yield Finding(str(folder), str(error), "see this sentence's end")


def _checkpoints(environment: Environment, repair: bool) -> Iterator[Finding]:
    """Compare checkpoints with their manifests."""
    for folder in sorted(path for path in environment.checkpoints.glob("*") if path.is_dir()):
        for path in checkpoints(folder):
            damage = problem(path)
            # A training that runs may have removed it meanwhile.
            if damage is not None and path.exists():
                found = Finding(str(path), damage, "the training resumes from the checkpoint before it")
                try:
                    found = replace(found, is_repaired=repair and _restored(environment, path))
                except UserError as error:
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
        client = connect(environment)
        with answering(environment):
            champion = find_champion(client, name)
            if champion is None:
                return
            try:
                with downloaded(champion):
                    return
            except Changed as error:
                found = Finding(f"version {champion.version} of {name}", str(error), "see this sentence's end")
                repaired = repair and any(restore(client, champion, folder) for folder in _models(champion.tags))
                yield replace(found, is_repaired=repaired)
    except UserError as error:
        yield Finding(f"the champion of {name}", f"it could not be looked at ({error})", "start the store")


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
