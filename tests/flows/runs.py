"""Runs of the flow as commands, and what Prefect has of them."""

import os
import subprocess
import sys
import time

import httpx
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL

from tests.flows.repository import CHECKOUT


def artifacts(flow_run_id):
    with get_client(sync_client=True) as client:
        found = client.request("POST", "/artifacts/filter", json={}).json()
    return {each["key"]: each for each in found if each["flow_run_id"] == str(flow_run_id)}


def with_our_server():
    return {**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value()}


def start_flow(variables):
    """Run the flow as a command, at the head of a process group as a terminal would."""
    return subprocess.Popen(
        [sys.executable, "-m", "flows.pipeline"],
        # The projects of these tests are no checkouts, and `flows` is installed nowhere.
        env={**variables, "PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def make_scheduled_runs(deployment, **span):
    """Let the server make the runs of a deployment's schedule, now."""
    # It answers 503 while another of its writers holds the SQLite file; its client would try for minutes.
    url = f"{PREFECT_API_URL.value()}/deployments/{deployment}/schedule"
    for _ in range(20):
        answer = httpx.post(url, json={name: each.isoformat() for name, each in span.items()}, timeout=30)
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
            break
        time.sleep(1)
    answer.raise_for_status()


SLOW_STAGE = """
import os, subprocess, sys, time
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
with open("pids.tmp", "w") as file:
    print(os.getpid(), os.getppid(), grandchild.pid, file=file)
os.rename("pids.tmp", "pids")
time.sleep(60)
"""
