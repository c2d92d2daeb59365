"""prefect.yaml's deployments are put on a server, or a sentence says what is in the way."""

import copy
import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.events.schemas.automations import Posture

from flows.automations import AUTOMATIONS, SILENCE
from flows.deploy import POOL_TYPES, TEMPLATES, CannotDeploy, deploy
from tests.flows.prefect_yaml import CONTENT, VARIABLES
from tests.flows.repository import CHECKOUT


def run_deploy(*arguments, **variables):
    """Run `python -m flows.deploy` as a user who has set nothing else."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DIFFUSION_"))}
    return subprocess.run(
        [sys.executable, "-m", "flows.deploy", *arguments],
        env=kept | variables,
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )


def sentence(done):
    """Return the one sentence with which it gave up."""
    assert (done.returncode, done.stdout) == (2, ""), done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    return line.removeprefix("error: ")


def test_an_unknown_pool_is_told_with_those_that_there_are():
    assert sentence(run_deploy("kubernets")) == (
        "there is no pool kubernets: prefect.yaml has machine, docker, kubernetes"
    )


def test_all_missing_variables_are_told_at_once():
    there = {"DIFFUSION_REPOSITORY": "", "DIFFUSION_IMAGE": "x"}
    assert sentence(run_deploy("kubernetes", **there)) == (
        "nightly-kubernetes needs DIFFUSION_DVC_REMOTE, DIFFUSION_NAMESPACE, DIFFUSION_REVISION,"
        " DIFFUSION_S3_ENDPOINT: set each, to nothing where there is nothing to name;"
        " docs/operate.md says what they are"
    )


@pytest.mark.parametrize(
    "address", ["https://canary@host/team/it.git", "https://me:canary@host/it.git", "ssh://me:canary@host/it.git"]
)
def test_a_secret_in_the_repositorys_address_is_not_deployed(address):
    told = sentence(run_deploy("machine", DIFFUSION_REPOSITORY=address))
    assert told.startswith("DIFFUSION_REPOSITORY holds a user or a password, which Prefect's database would keep:")
    assert "canary" not in told


@pytest.mark.parametrize(
    "address", ["ssh://git@host/team/it.git", "git@host:team/it.git", "https://host/it@1.git", "/a@b"]
)
def test_an_address_without_a_secret_is_none(address, tmp_path):
    told = sentence(run_deploy("machine", DIFFUSION_REPOSITORY=address, PREFECT_HOME=str(tmp_path)))
    assert told.startswith("there is no Prefect server")


def test_without_a_server_it_says_how_to_get_one(tmp_path):
    told = sentence(run_deploy("machine", PREFECT_HOME=str(tmp_path)))
    assert told.startswith("there is no Prefect server to deploy to: set PREFECT_API_URL")


def test_an_address_that_a_container_does_not_reach_is_told():
    names = ("DVC_REMOTE", "IMAGE", "NAMESPACE", "NETWORK", "REPOSITORY", "REVISION", "SECRETS")
    there = {f"DIFFUSION_{name}": "x" for name in names}
    for address in ("http://127.0.0.1:9000", "http://localhost:9000"):
        told = sentence(run_deploy("docker", **there, DIFFUSION_S3_ENDPOINT=address))
        assert told.startswith("DIFFUSION_S3_ENDPOINT is an address of this machine alone")


@contextmanager
def refusing_server(*, reads):
    """A server that lets nobody in, or lets all read and nobody change anything."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status = {"flows": 200, "work_pools": 404 if self.command == "GET" else 403}
            body = b"[]"
            self.send_response(status.get(self.path.split("/")[2], 404) if reads else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_server_that_lets_nobody_in_is_told_without_its_password(tmp_path):
    with refusing_server(reads=False) as address:
        url = f"http://somebody:canary@{address}/api"
        told = sentence(run_deploy("machine", PREFECT_API_URL=url, PREFECT_HOME=str(tmp_path)))
    assert re.match(rf"the Prefect server at http://{address} cannot be used \(it answers 401\)", told)
    assert "canary" not in told


def test_a_server_that_takes_no_changes_is_told_without_its_password(tmp_path):
    with refusing_server(reads=True) as address:
        url = f"http://somebody:canary@{address}/api"
        told = sentence(run_deploy("machine", PREFECT_API_URL=url, PREFECT_HOME=str(tmp_path)))
    assert told.startswith("the Prefect server refuses")
    assert "403" in told
    assert "canary" not in told


@pytest.fixture
def checkout(monkeypatch):
    monkeypatch.chdir(CHECKOUT)
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)


def automations(client):
    names = [each.name for each in AUTOMATIONS]
    return {name: client.read_automations_by_name(name) for name in names}


def test_deploying_twice_leaves_one_of_each(clean_server, monkeypatch):
    monkeypatch.chdir(CHECKOUT)
    assert deploy("machine") == deploy("machine") == ["pipeline/nightly", "upkeep/weekly"]
    assert {each.name for each in clean_server.read_deployments()} == {"nightly", "weekly"}
    deployment = clean_server.read_deployment_by_name("pipeline/nightly")
    (pool,) = clean_server.read_work_pools()
    assert (deployment.name, deployment.work_pool_name) == ("nightly", "machine")
    assert (pool.name, pool.type) == ("machine", "process")
    # Nobody who deploys has said what to clone: it is the worker that knows.
    assert deployment.pull_steps == CONTENT["pull"]
    there = automations(clean_server)
    assert [len(each) for each in there.values()] == [1, 1]
    means_what_we_wrote(*(each[0] for each in there.values()))


def means_what_we_wrote(silent, crashed):
    """Hold the automations as the server gives them back against what they are for."""
    trigger = silent.trigger
    assert (trigger.posture, trigger.within, trigger.threshold) == (Posture.Proactive, SILENCE, 1)
    assert trigger.after == {"prefect.flow-run.heartbeat"}
    assert trigger.after < trigger.expect
    # A run that has ended sends no heartbeat either.
    ends = {"Completed", "Failed", "Cancelled", "Crashed"}
    assert trigger.expect - trigger.after == {f"prefect.flow-run.{each}" for each in ends}
    assert trigger.for_each == {"prefect.resource.id"}
    (action,) = silent.actions
    assert (action.type, action.state) == ("change-flow-run-state", StateType.CRASHED)

    trigger = crashed.trigger
    assert (trigger.posture, trigger.expect) == (Posture.Reactive, {"prefect.flow-run.Crashed"})
    (action,) = crashed.actions
    assert (action.type, action.state, action.name) == (
        "change-flow-run-state",
        StateType.SCHEDULED,
        "AwaitingRetry",
    )
    assert silent.enabled
    assert crashed.enabled
    run = {"prefect.resource.id": "prefect.flow-run.*"}
    assert silent.trigger.match.root == run
    # What could not start (0) would fail again at once, and what has died five times has a reason.
    assert crashed.trigger.match.root == run | {"prefect.run-count": ["1", "2", "3", "4"]}


def test_the_kubernetes_pool_has_our_template_and_a_changed_one_is_brought_up_to_date(clean_server, checkout):
    template = json.loads(TEMPLATES["kubernetes"].read_text(encoding="utf-8"))
    deploy("kubernetes")
    assert clean_server.read_work_pool("kubernetes").base_job_template == template
    deployment = clean_server.read_deployment_by_name("pipeline/nightly-kubernetes")
    assert deployment.job_variables["gpus"] == 1
    assert deployment.job_variables["namespace"] == "training"
    assert "{{" not in str(deployment.job_variables)
    clone = {"repository": VARIABLES["DIFFUSION_REPOSITORY"], "branch": VARIABLES["DIFFUSION_REVISION"]}
    assert deployment.pull_steps == [{"prefect.deployments.steps.git_clone": clone}]
    older = copy.deepcopy(template)
    older["variables"]["properties"]["memory"]["default"] = "1Gi"
    clean_server.update_work_pool("kubernetes", WorkPoolUpdate(base_job_template=older))
    deploy("kubernetes")
    assert clean_server.read_work_pool("kubernetes").base_job_template == template


def test_a_pool_of_another_type_is_told(clean_server, checkout):
    deploy("machine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(POOL_TYPES, "machine", "docker")
        with pytest.raises(CannotDeploy, match="the server has a pool machine of the type process, not docker"):
            deploy("machine")


def test_what_prefect_says_of_a_deployment_that_it_does_not_take_is_told(clean_server, checkout, tmp_path, monkeypatch):
    text = (CHECKOUT / "prefect.yaml").read_text(encoding="utf-8")
    (tmp_path / "prefect.yaml").write_text(text.replace("gpus: 1", "gpus: many"))
    for folder in ("flows", "docker"):
        (tmp_path / folder).symlink_to(CHECKOUT / folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CannotDeploy, match=r"field 'gpus'.* 'many' is not valid"):
        deploy("kubernetes")
