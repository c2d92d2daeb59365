"""Runs that were missed, stopped or killed while `python -m flows.schedule` serves the deployments."""

import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId, FlowRunFilterExpectedStartTime
from prefect.states import Scheduled

from diffusion_core.supervision.worker import runs_still
from flows.automations import AUTOMATIONS
from tests.flows.repository import CHECKOUT
from tests.flows.runs import SLOW_STAGE, make_scheduled_runs, with_our_server

pytestmark = [pytest.mark.usefixtures("prefect_server"), pytest.mark.servers]


@pytest.fixture(scope="module")
def serving(finished_project, tmp_path_factory):
    """A project after a run whose schedule is served, a client, and its deployment."""
    folder = tmp_path_factory.mktemp("serving") / "project"
    shutil.copytree(finished_project[0], folder)
    for name in ("flows", "prefect.yaml"):
        (folder / name).symlink_to(CHECKOUT / name)
    variables = with_our_server() | {"PYTHONPATH": str(CHECKOUT), "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
    log = folder / "schedule.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.schedule"], cwd=folder, env=variables, stdout=output, stderr=output
        )
    try:
        wait(lambda: "polling for scheduled runs" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        with get_client(sync_client=True) as client:
            yield folder, client, client.read_deployment_by_name("pipeline/nightly").id
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        with get_client(sync_client=True) as client:
            for deployment in client.read_deployments():
                client.delete_deployment(deployment.id)
            for automation in AUTOMATIONS:
                for there in client.read_automations_by_name(automation.name):
                    client.delete_automation(there.id)


def wait(is_done, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not is_done():
        assert time.monotonic() < deadline
        time.sleep(0.3)


def due(client, deployment):
    now = FlowRunFilterExpectedStartTime.model_validate({"before_": datetime.now(UTC)})
    wanted = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment]), expected_start_time=now)
    return client.read_flow_runs(flow_run_filter=wanted)


def test_one_run_stands_for_all_that_were_missed(serving):
    folder, client, deployment = serving
    now = datetime.now(UTC)
    # Somebody asked for this one, so it runs although it is late.
    asked = client.create_flow_run_from_deployment(
        deployment,
        parameters={"promote": False, "refresh_data": False},
        state=Scheduled(scheduled_time=now - timedelta(days=1)),
    )
    make_scheduled_runs(deployment, start_time=now - timedelta(days=4), end_time=now)
    runs = due(client, deployment)
    assert sum(run.auto_scheduled for run in runs) == 3
    wait(lambda: all(run.state.is_final() for run in due(client, deployment)))
    found = {run.id: run.state for run in due(client, deployment)}
    # The control: a run that is due runs, if none stands for it.
    assert found.pop(asked.id).is_completed()
    names = sorted(state.name for state in found.values())
    assert names == ["Completed", "Skipped", "Skipped"]
    assert "2 more runs were missed since" in (folder / "schedule.log").read_text()


def test_a_run_that_is_stopped_is_crashed_at_once_and_the_server_knows_how_to_notice_dead_ones(serving):
    folder, client, deployment = serving
    (folder / "on_ingest.py").write_text(SLOW_STAGE)
    run = client.create_flow_run_from_deployment(deployment)
    wait((folder / "pids").exists)
    stage = psutil.Process(int((folder / "pids").read_text().split()[0]))
    flow = next(each for each in stage.parents() if "prefect" in " ".join(each.cmdline()) and each.environ())
    assert flow.environ()["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert all(client.read_automations_by_name(each.name) for each in AUTOMATIONS)
    began = time.monotonic()
    os.kill(flow.pid, signal.SIGTERM)
    wait(lambda: "Crashed" in [state.name for state in client.read_flow_run_states(run.id)])
    assert time.monotonic() - began < 120
    assert not runs_still(stage)
