"""The worker as docker/kubernetes.yaml starts it, before a cluster that allows what its Role lists and no more."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL
from prefect.states import Running

from flows.deploy import deploy
from tests.docker.kubernetes import container, problems, the
from tests.docker.stack import answers
from tests.flows.cluster import LOG, NAMESPACE, running_cluster
from tests.flows.repository import CHECKOUT
from tests.ports import free_port

PASSWORD = "admin:canary-of-prefect"
RULES = the("Role")["rules"]
WORKER = container(the("Deployment"))


@pytest.fixture
def cluster():
    with running_cluster(RULES) as cluster:
        yield cluster


def variables(cluster, tmp_path, port):
    """Return what the worker's container has in its environment, and where this machine's things are."""
    fields = {"metadata.namespace": NAMESPACE}
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(CHECKOUT),
        "HOME": str(tmp_path),
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
        "PREFECT_WORKER_WEBSERVER_PORT": str(port),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "KUBECONFIG": str(cluster.write_kubeconfig(tmp_path / "kubeconfig")),
        "PREFECT_API_URL": PREFECT_API_URL.value(),
        "PREFECT_API_AUTH_STRING": PASSWORD,
        **{
            each["name"]: each["value"] if "value" in each else fields[each["valueFrom"]["fieldRef"]["fieldPath"]]
            for each in WORKER["env"]
        },
    }


@contextmanager
def worker(environment, tmp_path):
    with (tmp_path / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *WORKER["args"][1:]],
            env=environment,
            cwd=tmp_path,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def wait(what, log, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    return found


# What the worker does when a run is cancelled, and its observer when one crashes before it speaks to Prefect.
REST = """
import asyncio, logging, sys
from types import SimpleNamespace
from prefect_kubernetes.observer import _fetch_crashed_pod_logs
from prefect_kubernetes.worker import KubernetesWorker

job, namespace = sys.argv[1:]


async def main():
    logs = await _fetch_crashed_pod_logs("", job, namespace, logging.getLogger())
    print(logs[0].lines)
    await KubernetesWorker("kubernetes").kill_infrastructure(f"{namespace}:{job}", SimpleNamespace(cluster_config=None))


asyncio.run(main())
"""


def test_a_run_that_crashes_is_seen_and_started_again_with_no_right_but_those_of_the_role(
    cluster, clean_server, monkeypatch, tmp_path
):
    monkeypatch.chdir(CHECKOUT)
    for name in ("REPOSITORY", "REVISION", "S3_ENDPOINT", "DVC_REMOTE", "IMAGE"):
        monkeypatch.setenv(f"DIFFUSION_{name}", "registry.example/diffusion:1" if name == "IMAGE" else "")
    monkeypatch.setenv("DIFFUSION_NAMESPACE", NAMESPACE)
    name = deploy("kubernetes")[0]
    port = free_port()
    environment = variables(cluster, tmp_path, port)
    log = tmp_path / "worker.log"
    with get_client(sync_client=True) as client, worker(environment, tmp_path):
        deployment = client.read_deployment_by_name(name)
        run = client.create_flow_run_from_deployment(deployment.id).id
        (job,) = wait(lambda: cluster.jobs, log)
        assert answers(f"http://127.0.0.1:{port}/health")

        # As the cluster is sent it: a job of its own kind, no password in it, and a reference in its place.
        manifest = {key: value for key, value in job.items() if key != "status"}
        assert problems(manifest, "V1Job") == []
        assert "canary" not in json.dumps(manifest)
        sent = {each["name"]: each for each in container(manifest)["env"]}
        source = {"name": "diffusion", "key": "PREFECT_API_AUTH_STRING"}
        assert sent["PREFECT_API_AUTH_STRING"]["valueFrom"]["secretKeyRef"] == source
        assert sent["PREFECT_API_URL"]["value"] == PREFECT_API_URL.value()

        client.set_flow_run_state(run, Running(), force=True)
        cluster.crash(job)
        wait(lambda: client.read_flow_run(run).state_type in (StateType.CRASHED, StateType.SCHEDULED), log)
        wait(lambda: len(cluster.jobs) == 2, log)
        states = {each.name for each in client.read_flow_run_states(run)}
        assert {"Crashed", "AwaitingRetry"} <= states

        first, second = (each["metadata"]["name"] for each in cluster.jobs)
        done = subprocess.run(
            [sys.executable, "-c", REST, first, NAMESPACE], env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (0, f"{[LOG]}\n"), done.stderr
        assert [each["metadata"]["name"] for each in cluster.jobs] == [second]
    assert cluster.refused == set()
    assert cluster.used == cluster.allowed


def test_another_right_would_be_missed(cluster):
    for request in (("", "secrets", "get"), ("batch", "jobs", "patch"), ("", "namespaces", "watch")):
        assert not cluster.may(request)
    assert len(cluster.refused) == 3
