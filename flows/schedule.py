"""Serves the deployments of prefect.yaml on one machine: `python -m flows.schedule`.

A Prefect server must answer at PREFECT_API_URL. prefect.yaml has the schedules for this process and for
`prefect deploy`. The server gets the automations that mark a dead run as crashed and start it again.
"""

import os
from pathlib import Path
from typing import Any

from prefect import Flow, serve
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Cron

from diffusion_core.documents import read_yaml
from flows.automations import put_automations
from flows.pipeline import pipeline
from flows.upkeep import upkeep

DEPLOYMENTS = Path("prefect.yaml")
# Name of the work pool whose deployments run here without it.
POOL = "machine"
FLOWS: dict[str, Flow[Any, Any]] = {"flows/pipeline.py:pipeline": pipeline, "flows/upkeep.py:upkeep": upkeep}


def deployments(file: Path = DEPLOYMENTS) -> list[RunnerDeployment]:
    """Return the deployments of prefect.yaml for the pool `machine`, without the pool."""
    return [_deployment(each) for each in _of_pool(file)]


def variables(file: Path = DEPLOYMENTS) -> dict[str, str]:
    """Return the variables of these deployments' runs, which inherit those of this process."""
    return {name: value for each in _of_pool(file) for name, value in each["work_pool"]["job_variables"]["env"].items()}


def _of_pool(file: Path) -> list[dict[str, Any]]:
    return [each for each in read_yaml(file)["deployments"] if each["work_pool"]["name"] == POOL]


def _deployment(content: dict[str, Any]) -> RunnerDeployment:
    schedules = [{**schedule} for schedule in content["schedules"]]
    deployment = FLOWS[content["entrypoint"]].to_deployment(
        content["name"],
        description=content["description"],
        parameters=content["parameters"],
        schedules=[Cron(schedule.pop("cron"), **schedule) for schedule in schedules],
        concurrency_limit=ConcurrencyLimitConfig(**content["concurrency_limit"]),
    )
    # In an async context, Prefect would return a coroutine.
    assert isinstance(deployment, RunnerDeployment)
    return deployment


if __name__ == "__main__":
    os.environ |= variables()
    with get_client(sync_client=True) as client:
        put_automations(client)
    serve(*deployments())
