import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL

from flows.schedule import deployments
from tests.flows.repository import CHECKOUT
from tests.flows.runs import make_scheduled_runs

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def client():
    with get_client(sync_client=True) as client:
        yield client


def read(client):
    deployment = client.read_deployment_by_name("pipeline/nightly")
    (schedule,) = deployment.schedules
    options = deployment.concurrency_options
    return {
        "cron": schedule.schedule.cron,
        "timezone": schedule.schedule.timezone,
        "active": schedule.active,
        "parameters": deployment.parameters,
        "limit": deployment.global_concurrency_limit.limit,
        "collision": options.collision_strategy.value,
        "entrypoint": deployment.entrypoint,
    }


EXPECTED = {
    "cron": "0 2 * * *",
    "timezone": "UTC",
    "active": True,
    "parameters": {"overrides": [], "refresh_data": True, "promote": True, "lock": "artifact"},
    "limit": 1,
    "collision": "ENQUEUE",
    "entrypoint": "flows/pipeline.py:pipeline",
}


def prefect(*arguments):
    variables = {**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value()}
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    run = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_what_is_served_is_what_prefect_yaml_deploys(client, monkeypatch):
    monkeypatch.chdir(CHECKOUT)
    for each in deployments():
        each.apply()
    served = read(client)
    client.delete_deployment(client.read_deployment_by_name("pipeline/nightly").id)
    prefect("work-pool", "create", "--type", "process", "machine")
    prefect("deploy", "--name", "nightly")
    assert read(client) == served == EXPECTED


def test_the_schedule_makes_runs(client, monkeypatch):
    monkeypatch.chdir(CHECKOUT)
    deployment = deployments()[0].apply()
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    make_scheduled_runs(deployment, end_time=tomorrow)
    runs = client.read_flow_runs()
    starts = {run.expected_start_time for run in runs if run.deployment_id == deployment}
    assert {(start.hour, start.minute) for start in starts} == {(2, 0)}
