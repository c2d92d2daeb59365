"""Serves the deployments of prefect.yaml on one machine: `python -m flows.schedule`.

A Prefect server must answer at PREFECT_API_URL. prefect.yaml has the schedules for this process and for
`prefect deploy`.
"""

from pathlib import Path
from typing import Any

from prefect import Flow, serve
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Cron

from diffusion_core.documents import read_yaml
from flows.pipeline import pipeline
from flows.upkeep import upkeep

DEPLOYMENTS = Path("prefect.yaml")
# Name of the work pool whose deployments run here without it.
POOL = "machine"
FLOWS: dict[str, Flow[Any, Any]] = {"flows/pipeline.py:pipeline": pipeline, "flows/upkeep.py:upkeep": upkeep}


def deployments(file: Path = DEPLOYMENTS) -> list[RunnerDeployment]:
    """Return the deployments of prefect.yaml for the pool `machine`, without the pool."""
    content = read_yaml(file)["deployments"]
    return [_deployment(each) for each in content if each["work_pool"]["name"] == POOL]


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
    serve(*deployments())
