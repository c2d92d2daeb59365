"""What the store knows of a published version: its run, what it cost, and what differs from the champion."""

from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import Run

from diffusion_core.config.environment import Environment
from diffusion_core.registry.champions import CHAMPION_BEFORE
from diffusion_core.registry.connection import run_page
from diffusion_core.registry.publication import STANDS_IN_FOR
from diffusion_core.registry.versions import find_champion, find_named

# Tags of a version that say where it comes from, by what they are called on a page.
TAGS = {"prefect_flow_run": "flow run in Prefect"}


@dataclass(frozen=True)
class Published:
    """A version and its run.

    Attributes:
        name: the registered model.
        version: number of the version.
        run_id: id of the run that trained it.
        page: address of that run.
        tags: more about its origin, by name.
        cost: of the training, by name.
        changes: each parameter that is another one than the champion's: its name, the champion's and this one's value.
    """

    name: str
    version: int
    run_id: str
    page: str
    tags: dict[str, str]
    cost: dict[str, str]
    changes: list[tuple[str, str, str]]


def published(client: MlflowClient, name: str, version: int, environment: Environment) -> Published:
    """Return what the store knows of a version.

    Raises:
        UserError: there is no such version.
    """
    found = find_named(client, name, str(version))
    run = client.get_run(str(found.run_id))
    champion = found.tags.get(CHAMPION_BEFORE)
    if champion is None and (present := find_champion(client, name)) is not None and present.version != found.version:
        champion = str(present.version)
    other = None if champion is None else client.get_run(str(find_named(client, name, champion).run_id))
    return Published(
        name,
        version,
        run.info.run_id,
        run_page(environment, run.info.experiment_id, run.info.run_id),
        {title: found.tags[tag] for tag, title in TAGS.items() if tag in found.tags},
        _cost(run),
        [] if other is None else _changes(other, run),
    )


def _cost(run: Run) -> dict[str, str]:
    """Return what the training took; a run that stands in for another one has no times of its own."""
    begun, ended = run.info.start_time, run.info.end_time
    if STANDS_IN_FOR in run.data.tags or not begun or not ended:
        return {}
    hours = (ended - begun) / 3.6e6
    shown = {"images trained on": f"{float(run.data.params.get('train.images', 0)):,.0f}"}
    shown["from begin to end"] = f"{hours * 60:.1f} minutes" if hours < 1 else f"{hours:.1f} hours"
    for tag, title in (("device", "device"), ("precision", "precision")):
        if tag in run.data.tags:
            shown[title] = run.data.tags[tag]
    return shown


def _changes(before: Run, now: Run) -> list[tuple[str, str, str]]:
    """Return each parameter that differs, and the hash of the data if it does."""
    pairs = [(before.data.params, now.data.params), (before.data.tags, now.data.tags)]
    names = [sorted({*pairs[0][0], *pairs[0][1]}), ["dataset_md5", "git_commit"]]
    return [
        (name, one.get(name, "none"), other.get(name, "none"))
        for (one, other), each in zip(pairs, names, strict=True)
        for name in each
        if one.get(name) != other.get(name)
    ]
