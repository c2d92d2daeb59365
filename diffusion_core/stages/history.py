"""Show who was the champion when, by which metrics and why; or a calendar of all runs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.files import write_whole
from diffusion_core.registry.champions import Event, events
from diffusion_core.registry.connection import answering, connect
from diffusion_core.registry.published import Measured, measured_versions
from diffusion_core.registry.versions import find_champion
from diffusion_core.report.calendar import Night, history
from diffusion_core.stages.paths import HISTORY

# The metric that each day of the calendar shows.
SHOWN = "frechet"


def run(environment: Environment, as_json: bool) -> None:
    """Print each decision of the gate and each rollback, the oldest first, and the present champion.

    Raises:
        UserError: no version was published and promoted or refused yet.
        Unavailable: the tracking store does not answer.
    """
    client = connect(environment, may_create=False)
    name = environment.registered_model
    with answering(environment):
        found = events(client, name)
        champion = find_champion(client, name)
    if not found and champion is None:
        raise UserError(f"{name} has no history yet: publish a model and promote it, with `diffusion run`")
    if as_json:
        now = None if champion is None else int(champion.version)
        print(json.dumps({"model": name, "champion": now, "events": [asdict(each) for each in found]}, indent=2))
        return
    for event in found:
        print(f"{event.time[:19].replace('T', ' ')} UTC  {event.sentence}")
    present = "there is no champion" if champion is None else f"version {champion.version} is the champion"
    print(f"history: {present} of {name}")


def write_page(environment: Environment, runs: Sequence[Mapping[str, Any]] | None) -> None:
    """Write plots/history.html: what became of each run, with the metrics of its version.

    Args:
        environment: the environment, with store and registered model.
        runs: those that Prefect knows, as `flows.nights` has them; None if no server is configured.

    Raises:
        UserError: there is no run and no version yet.
        Unavailable: the tracking store does not answer.
    """
    client = connect(environment, may_create=False)
    name = environment.registered_model
    with answering(environment):
        versions = measured_versions(client, environment)
        found = events(client, name)
    known = {str(run["id"]) for run in runs or ()}
    nights = [_of_run(run, versions) for run in runs or ()]
    # The gate's others are shown by the run that made them. No run rolls back.
    nights += [
        _of_event(each, versions)
        for each in found
        if each.outcome == "rollback" or versions[each.version].flow_run not in known
    ]
    if not nights:
        raise UserError(f"{name} has no history yet: publish a model and promote it, with `diffusion run`")
    HISTORY.parent.mkdir(exist_ok=True)
    write_whole(HISTORY, history(name, nights, SHOWN))
    if runs is None:
        print(
            "history: nights without a decision are missing, because no Prefect server is configured: set"
            " PREFECT_API_URL, for `make serve` to http://127.0.0.1:4200/api"
        )
    print(f"history: {HISTORY} shows its runs and events: {len(nights)}")


def _of_run(run: Mapping[str, Any], versions: Mapping[int, Measured]) -> Night:
    # A run that trains nothing new decides again on a version of an earlier one.
    by_run = next((each for each in versions.values() if each.flow_run == run["id"]), None)
    version = versions.get(run["version"]) or by_run
    metrics = {} if version is None else version.metrics
    return Night(run["time"], run["outcome"], run["sentence"], metrics, {"Prefect": run["page"]} | _pages(version))


def _of_event(event: Event, versions: Mapping[int, Measured]) -> Night:
    version = versions[event.version]
    return Night(event.time, event.outcome, event.sentence, version.metrics, _pages(version))


def _pages(version: Measured | None) -> dict[str, str]:
    return {} if version is None or version.page is None else {"MLflow": version.page}
