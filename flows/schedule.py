"""Serves the nightly deployment of prefect.yaml: `python -m flows.schedule`.

A Prefect server must answer at PREFECT_API_URL. prefect.yaml has the schedule for this process and for
`prefect deploy`.
"""

from pathlib import Path
from typing import Any

from prefect import serve
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Cron

from diffusion_core.documents import read_yaml
from flows.pipeline import pipeline

DEPLOYMENTS = Path("prefect.yaml")


def nightly(file: Path = DEPLOYMENTS) -> RunnerDeployment:
    """Return the first deployment of prefect.yaml, without its work pool."""
    content: dict[str, Any] = read_yaml(file)["deployments"][0]
    deployment = pipeline.to_deployment(
        content["name"],
        description=content["description"],
        parameters=content["parameters"],
        schedules=[Cron(schedule.pop("cron"), **schedule) for schedule in content["schedules"]],
        concurrency_limit=ConcurrencyLimitConfig(**content["concurrency_limit"]),
    )
    # In an async context, Prefect would return a coroutine.
    assert isinstance(deployment, RunnerDeployment)
    return deployment


if __name__ == "__main__":
    serve(nightly())
