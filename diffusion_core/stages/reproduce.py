"""Train a registered version again from what is recorded of it, in a worktree of its own, and compare the weights."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import PositiveInt, SecretStr, TypeAdapter, ValidationError

from diffusion_core.config.environment import PREFIX, Environment, ThreadsUsed
from diffusion_core.config.params import PARAMS_FILE
from diffusion_core.documents import read_json
from diffusion_core.errors import UserError
from diffusion_core.files import discard, leftovers, sweep_discarded, write_whole
from diffusion_core.lineage.model_files import DESCRIPTION, WEIGHTS, model_digest
from diffusion_core.lineage.provenance import DVC_LOCK
from diffusion_core.lineage.record import RunInfo
from diffusion_core.lineage.recorded import MACHINE, shown
from diffusion_core.lineage.weights import Difference, compare_weights, first_difference
from diffusion_core.lineage.worktree import bring, check_commit, make_worktree, remove_worktree
from diffusion_core.locks import Locked, exclusive_lock
from diffusion_core.registry.connection import answering, connect
from diffusion_core.registry.origin import Origin, Trained, origin, trained
from diffusion_core.registry.tracking import replay_training
from diffusion_core.registry.version_names import registered_name
from diffusion_core.registry.versions import downloaded, find_named
from diffusion_core.stages.paths import MODELS, PREPARED, REPRODUCED, RUN_INFO
from diffusion_core.supervision.child import leave, run_child
from diffusion_core.training.validation import affordable_images, share_of

# In the folder of a reproduction: which version it is of, its worktree, its checkpoints and its tracking store.
OF, CHECKOUT, CHECKPOINTS, STORE = "reproduction.json", "checkout", "checkpoints", "mlflow.db"
# Copies of the registered model, and of the one that its training began from.
REGISTERED, PARENT, LOCK = "registered", "parent", ".lock"
# Variables that decide how numbers are rounded: they are as they were, unless the user sets them.
ROUNDING = {
    "device": "device",
    "processes": "processes",
    "threads": "threads",
    "precision": "precision",
    "compile": "compiled",
}


def run(environment: Environment, name: str, out: Path | None) -> bool:
    """Train a version again, and print whether its weights are the same to the last bit, or where they part.

    The registry, models/ and the tracking store do not change. What an interrupted call left is continued. The folder
    is removed where the weights are the same.

    Args:
        environment: the environment, with store and registered model.
        name: `NAME/NUMBER`, or another name of a version.
        out: a folder for the worktree; by default one below .cache/reproduced.

    Returns:
        Whether the weights are the same.

    Raises:
        UserError: there is no such version, something that it needs is not recorded or not here, or its training fails.
        Unavailable: the tracking store does not answer.
    """
    client = connect(environment, may_create=False)
    with answering(environment):
        version = find_named(client, *registered_name(environment, name))
        made_of = origin(client, version)
    check_commit(made_of.commit)
    folder = out or REPRODUCED / f"{quote(made_of.model, safe='')}-{made_of.version}"
    registered = folder / REGISTERED
    with _owned(folder, made_of):
        with answering(environment), downloaded(version) as files:
            shutil.copytree(files, registered, dirs_exist_ok=True)
        project = _project(folder, made_of, _params(environment, folder, made_of))
        _train(project, _variables(environment, folder, made_of))
        again = _again(environment, folder, project)
        found = compare_weights(registered / WEIGHTS, project / MODELS / WEIGHTS)
        _report(made_of, found, again)
        # The next call trains again.
        shutil.rmtree(folder / CHECKPOINTS)
        if found.different:
            print(f"reproduce: {folder} stays, with the model made again in {CHECKOUT}/{MODELS} and the registered one")
            return False
        _remove(folder)
    return True


@contextmanager
def _owned(folder: Path, made_of: Origin) -> Iterator[None]:
    """Use a folder in the block; a new one is removed again if the block raises an error before it trains.

    Raises:
        UserError: the folder is a file or has other files, or another process uses it.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name another with --out")
    sweep_discarded(folder.parent)
    content = json.dumps({"model": made_of.model, "version": made_of.version, "commit": made_of.commit})
    of = folder / OF
    folder.mkdir(parents=True, exist_ok=True)
    # What a process leaves that is killed before it has written `of`.
    others = {*folder.iterdir()} - {folder / LOCK, *leftovers(of)}
    if others and not (of.is_file() and of.read_text(encoding="utf-8") == content):
        raise UserError(f"{folder} has other files than those of this version: name another folder with --out")
    try:
        with exclusive_lock(folder / LOCK):
            # One of an earlier call may have its result.
            is_new = not of.exists()
            write_whole(of, content)
            try:
                yield
            except UserError:
                if is_new and not (folder / CHECKPOINTS).exists():
                    _remove(folder)
                raise
    except Locked as locked:
        raise UserError(f"another process reproduces in {folder}{locked.holder}: wait until it has ended") from None


def _remove(folder: Path) -> None:
    remove_worktree(folder / CHECKOUT)
    discard(folder)


def _params(environment: Environment, folder: Path, made_of: Origin) -> dict[str, Any]:
    """Return the content of params.yaml: as recorded, but it begins from a copy, and ends by images and not by time.

    Raises:
        UserError: the model that the training began from is another one now, or gone.
    """
    train = dict(made_of.params.get("train", {}))
    parent = read_json(folder / REGISTERED / DESCRIPTION).get("parent")
    if parent is not None:
        train["from"] = str(_copied_parent(environment, folder / PARENT, parent))
    rows = made_of.trained.history.get("train/loss")
    if train.get("minutes") is not None and rows:
        train |= {"minutes": None, "images": max(rows)} | _validated(train, max(rows))
    return made_of.params | {"train": train}


def _validated(train: Mapping[str, Any], images: int) -> dict[str, float]:
    """Return the share with which a training that ends after `images` measures as many images as it did."""
    every = train.get("validate_every_images", 0)
    if images >= min(every, train["images"]):
        return {}
    share = share_of(affordable_images(train["images"], every, train["validation_share"]), images)
    # A training has no more time for it than for itself; then the measurement at its end has fewer images.
    return {"validation_share": min(share, 0.99)}


def _copied_parent(environment: Environment, place: Path, parent: Mapping[str, str]) -> Path:
    """Copy a version, or a folder, that model.json names, and return where the copy is."""
    shutil.rmtree(place, ignore_errors=True)
    name, digest = parent["name"], parent["digest"]
    is_here = (Path(name) / DESCRIPTION).is_file()
    # Earlier code did not record which kind it is.
    if parent.get("kind", "folder" if is_here else "version") == "folder":
        if not is_here or model_digest(Path(name)) != digest:
            problem = "is another model now" if is_here else "is not here"
            raise UserError(
                f"the training began from the folder {name}, which {problem}: bring the model whose files have the"
                f" sha256 {digest} to {Path(name).absolute()}"
            )
        shutil.copytree(name, place)
    else:
        client = connect(environment, may_create=False)
        with (
            answering(environment),
            downloaded(find_named(client, *registered_name(environment, name))) as files,
        ):
            shutil.copytree(files, place)
    if model_digest(place) != digest:
        raise UserError(f"the training began from {name}, which is another model now: bring the one with {digest} back")
    print(f"reproduce: {name}, from which the training began, is in {place}", flush=True)
    return place.absolute()


def _project(folder: Path, made_of: Origin, params: Mapping[str, Any]) -> Path:
    """Make the worktree with parameters, dvc.lock and data, and return the project's folder in it."""
    changed = " with the changes that its checkout had" if made_of.changes else ""
    print(f"reproduce: commit {made_of.commit}{changed}, in {folder / CHECKOUT}", flush=True)
    project = make_worktree((folder / CHECKOUT).absolute(), made_of.commit, made_of.changes)
    # JSON is YAML.
    write_whole(project / PARAMS_FILE, json.dumps(params, indent=2, default=str) + "\n")
    write_whole(project / DVC_LOCK, made_of.lock)
    bring(project, PREPARED)
    return project


def _variables(environment: Environment, folder: Path, made_of: Origin) -> dict[str, str]:
    """Return the variables of the training: stores of its own, and what decides how numbers are rounded."""
    own = {
        "checkpoints": str((folder / CHECKPOINTS).absolute()),
        "tracking_uri": f"sqlite:///{(folder / STORE).absolute()}",
        "compile_cache": str(environment.compile_cache.absolute()),
    }
    machine = made_of.trained.machine
    for name, tag in ROUNDING.items():
        if name in environment.model_fields_set:
            own[name] = str(getattr(environment, name))
        elif name == "threads" and tag in machine and not _can_repeat(machine[tag]):
            print(f"reproduce: its threads cannot be repeated ({machine[tag]}), so the last bits may differ")
        elif tag in machine:
            own[name] = machine[tag].partition(" ")[0] if name == "device" else machine[tag]
    kept = {name: value for name, value in os.environ.items() if not name.startswith((PREFIX, "MLFLOW_", "PREFECT_"))}
    return kept | {f"{PREFIX}{name.upper()}": value for name, value in own.items()}


def _can_repeat(threads: str) -> bool:
    """Return whether DIFFUSION_THREADS takes a run's tag `threads`."""
    try:
        TypeAdapter(PositiveInt | ThreadsUsed).validate_python(threads)
    except ValidationError:
        return False
    return True


def _train(project: Path, variables: dict[str, str]) -> None:
    """Run the stage `train` of the worktree's own code; TERM and Ctrl-C let it write a checkpoint.

    Raises:
        UserError: it fails.
    """

    def show(output: bytes) -> None:
        sys.stdout.write(output.decode(errors="replace"))
        sys.stdout.flush()

    before = signal.signal(signal.SIGTERM, leave)
    try:
        with chdir(project):
            code = run_child([sys.executable, "-m", "diffusion_core", "train"], variables, show)
    finally:
        signal.signal(signal.SIGTERM, before)
    if code:
        raise UserError(f"the training in {project} fails with exit code {code}: correct what it says above")


def _again(environment: Environment, folder: Path, project: Path) -> Trained:
    """Return what the reproduction's own tracking store knows of its training."""
    store = environment.model_copy(
        update={
            "tracking_uri": SecretStr(f"sqlite:///{(folder / STORE).absolute()}"),
            "checkpoints": folder / CHECKPOINTS,
        }
    )
    key = RunInfo.read(project / RUN_INFO, "train").run_key
    replay_training(store, key)
    return trained(connect(store), key)


def _report(made_of: Origin, found: Difference, now: Trained) -> None:
    """Print whether the weights are the same or, if not, where the trainings part and what else differs."""
    named, then = made_of.named, made_of.trained
    if not found.different:
        print(f"reproduce: the weights are those of {named} to the last bit, in all {found.tensors} tensors")
        return
    print(
        f"reproduce: the weights are not those of {named}: {len(found.different)} of {found.tensors} tensors differ,"
        f" by at most {found.largest:.3g}{' in ' + found.where if found.where else ''}"
    )
    parts = first_difference(then.history, now.history)
    if parts is None:
        print("reproduce: the histories of the losses are the same" if then.history else "reproduce: it has no history")
    else:
        images, name = parts
        values = (each.history.get(name, {}).get(images) for each in (then, now))
        was, is_now = ("none" if each is None else repr(each) for each in values)
        print(f"reproduce: they part at or before {images:,} images, where {name} was {was} and is {is_now}")
    machines = shown(then.machine), shown(now.machine)
    differing = [
        f"{title} was {machines[0].get(title, 'not recorded')} and is {machines[1].get(title, 'not recorded')}"
        for title in MACHINE.values()
        if machines[0].get(title) != machines[1].get(title)
    ]
    same = f"{', '.join(MACHINE.values())} are the same"
    print(f"reproduce: {'; '.join(differing) or same}")
