"""Reads from the store what it takes to make a registered version again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from diffusion_core.errors import UserError
from diffusion_core.lineage.recorded import CHANGES, LOCK, MACHINE, PARAMS, UNRECORDED, Lock, all_params
from diffusion_core.lineage.weights import History
from diffusion_core.registry.run_files import run_file
from diffusion_core.registry.sending import find_run, has_run
from diffusion_core.registry.versions import COMMIT

# What is compared step by step.
COMPARED = ("train/loss", "train/grad_norm", "validation/loss")


@dataclass(frozen=True)
class Trained:
    """What a run knows of its training.

    Attributes:
        machine: the tags of `MACHINE`; empty if earlier code trained.
        history: metrics by the number of images.
    """

    machine: dict[str, str]
    history: dict[str, History]


@dataclass(frozen=True)
class Origin:
    """What a version was made of.

    Attributes:
        model: the registered model.
        version: number of the version.
        commit: hash of the commit.
        changes: what `git apply` adds to it, or empty.
        params: the sections of params.yaml.
        lock: the text of dvc.lock.
        trained: the training.
    """

    model: str
    version: int
    commit: str
    changes: str
    params: dict[str, Any]
    lock: str
    trained: Trained

    @property
    def named(self) -> str:
        """Number and name, as messages say them."""
        return f"version {self.version} of {self.model}"


def origin(client: MlflowClient, version: ModelVersion) -> Origin:
    """Return what a version was made of.

    Raises:
        UserError: a part of it is not recorded or damaged.
    """
    named = f"version {version.version} of {version.name}"
    commit = version.tags.get(COMMIT)
    if commit is None:
        raise UserError(f"{named} has no commit, because it was trained outside of a git checkout: train it again")
    if not has_run(client, str(version.run_id)):
        raise UserError(f"the run {version.run_id} of {named} was deleted in MLflow: restore it there")
    run = client.get_run(str(version.run_id))
    texts = {file: run_file(client, run, file) for file in (PARAMS, LOCK, CHANGES)}
    try:
        params, lock, changes = (None if each is None else each.decode() for each in texts.values())
        if lock is None:
            raise UserError(
                f"{named} has no recorded dvc.lock, because earlier code published it or DVC did not run its stages:"
                f" check {commit[:12]} out and run `dvc repro`"
            )
        if version.tags.get("git_dirty") == "true" and changes is None:
            why = run.data.tags.get(UNRECORDED, "earlier code trained it")
            raise UserError(f"{named} was trained with changes that are not recorded, because {why}: train it again")
        sections = all_params(params, Lock.parse(lock))
    except ValueError as error:
        why = " ".join(str(error).split())
        raise UserError(f"what was recorded of {named} is damaged ({why}): restore the store from a backup") from None
    applied = (changes or "") if version.tags.get("git_dirty") == "true" else ""
    return Origin(version.name, int(version.version), commit, applied, sections, lock, _trained(client, run))


def trained(client: MlflowClient, key: str) -> Trained:
    """Return what the run with a queue's key knows; nothing if the store does not have it."""
    run_id = find_run(client, key)
    return Trained({}, {}) if run_id is None else _trained(client, client.get_run(run_id))


def _trained(client: MlflowClient, run: Run) -> Trained:
    machine = {tag: run.data.tags[tag] for tag in MACHINE if tag in run.data.tags}
    history: dict[str, Mapping[int, float]] = {
        name: {each.step: each.value for each in client.get_metric_history(run.info.run_id, name)}
        for name in COMPARED
        if name in run.data.metrics
    }
    return Trained(machine, history)
