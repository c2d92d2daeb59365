"""What the store knows of a published version: its run, what it cost, and what differs from the champion."""

from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.lineage.identity import as_in_yaml
from diffusion_core.lineage.promotion import Decision
from diffusion_core.lineage.provenance import FLOW_RUN
from diffusion_core.registry.champions import recorded_decision
from diffusion_core.registry.connection import run_page
from diffusion_core.registry.publication import STANDS_IN_FOR
from diffusion_core.registry.sending import has_run
from diffusion_core.registry.versions import find_named, find_version, recorded_evaluation, versions_named

# Tags of a version that say where it comes from, by what they are called on a page.
TAGS = {FLOW_RUN: "flow run in Prefect"}


@dataclass(frozen=True)
class Published:
    """A version and its run.

    Attributes:
        name: the registered model.
        version: number of the version.
        run_id: id of the run that trained it.
        page: address of that run.
        decision: the gate's on the version, or None.
        tags: more about its origin, by name.
        cost: of the training, by name.
        seconds: of the training from begin to end, or None if another run stands in for it.
        changes: each parameter that is another one than the champion's: its name, the champion's and this one's value.
    """

    name: str
    version: int
    run_id: str
    page: str
    decision: Decision | None
    tags: dict[str, str]
    cost: dict[str, str]
    seconds: float | None
    changes: list[tuple[str, str, str]]


def published(client: MlflowClient, environment: Environment, digest: str) -> Published | None:
    """Return what the store knows of the version whose files have this digest, or None if there is none."""
    name = environment.registered_model
    found = find_version(client, name, digest)
    if found is None:
        return None
    run, decision = client.get_run(str(found.run_id)), recorded_decision(found)
    champion = None if decision is None else decision.grounds.champion
    other = None if champion is None else _run_of(client, name, str(champion))
    return Published(
        name,
        int(found.version),
        run.info.run_id,
        run_page(environment, run.info.experiment_id, run.info.run_id),
        decision,
        {title: found.tags[tag] for tag, title in TAGS.items() if tag in found.tags},
        cost_of(run),
        _seconds(run),
        [] if other is None else _changes(other, run),
    )


def _run_of(client: MlflowClient, name: str, version: str) -> Run | None:
    """Return the run of a version, or None if one of the two was deleted in MLflow, or another run stands in for it."""
    try:
        run = client.get_run(str(find_named(client, name, version).run_id))
        return None if STANDS_IN_FOR in run.data.tags else run
    except UserError:
        return None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def cost_of(run: Run) -> dict[str, str]:
    """Return what the training took; a run that stands in for another one has no times of its own."""
    seconds = _seconds(run)
    if seconds is None:
        return {}
    hours = seconds / 3600
    # A training may end before its budget, by time.
    images = run.data.tags.get("trained_images", run.data.params.get("train.images", "0"))
    shown = {"images trained on": f"{float(images):,.0f}"}
    shown["from begin to end"] = f"{hours * 60:.1f} minutes" if hours < 1 else f"{hours:.1f} hours"
    for tag, title in (("device", "device"), ("precision", "precision")):
        if tag in run.data.tags:
            shown[title] = run.data.tags[tag]
    return shown


def _seconds(run: Run) -> float | None:
    begun, ended = run.info.start_time, run.info.end_time
    return None if STANDS_IN_FOR in run.data.tags or not begun or not ended else (ended - begun) / 1000


def _changes(before: Run, now: Run) -> list[tuple[str, str, str]]:
    """Return each parameter that differs, and the hash of the data if it does."""
    pairs = [(before.data.params, now.data.params), (before.data.tags, now.data.tags)]
    names = [sorted({*pairs[0][0], *pairs[0][1]}), ["dataset_md5", "git_commit"]]
    return [
        (name, as_in_yaml(one.get(name, "none")), as_in_yaml(other.get(name, "none")))
        for (one, other), each in zip(pairs, names, strict=True)
        for name in each
        if one.get(name) != other.get(name)
    ]


@dataclass(frozen=True)
class Measured:
    """A version with its metrics.

    Attributes:
        flow_run: id of the flow run that published it, or None.
        metrics: those of its samples by name, as text.
        page: address of the run that trained it, or None if that was deleted in MLflow.
    """

    flow_run: str | None
    metrics: dict[str, str]
    page: str | None


def _page(client: MlflowClient, environment: Environment, run_id: str) -> str | None:
    """Return the address of a run, whose experiment may be another than the environment's."""
    if not has_run(client, run_id):
        return None
    return run_page(environment, client.get_run(run_id).info.experiment_id, run_id)


def measured_versions(client: MlflowClient, environment: Environment) -> dict[int, Measured]:
    """Return all versions of the registered model by number."""
    found = {}
    for version in versions_named(client, environment.registered_model):
        evaluation = recorded_evaluation(version)
        estimates = {} if evaluation is None else evaluation.estimates
        found[int(version.version)] = Measured(
            version.tags.get(FLOW_RUN),
            {name: f"{each.value:.4g}" for name, each in estimates.items()},
            _page(client, environment, str(version.run_id)),
        )
    return found
