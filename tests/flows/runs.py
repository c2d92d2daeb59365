"""Runs of the flow as commands, and what Prefect has of them."""

import os
import subprocess
import sys

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


SLOW_STAGE = """
import os, subprocess, sys, time
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
with open("pids.tmp", "w") as file:
    print(os.getpid(), os.getppid(), grandchild.pid, file=file)
os.rename("pids.tmp", "pids")
time.sleep(60)
"""
