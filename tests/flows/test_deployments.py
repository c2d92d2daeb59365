"""prefect.yaml's deployments, as the workers of their pools understand them, and how they are put on a server."""

import asyncio
import copy
import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from uuid import uuid4

import pytest
from docker.constants import DEFAULT_DOCKER_API_VERSION
from docker.models.containers import _create_container_args
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments.steps.core import run_steps
from prefect.events.schemas.automations import Posture
from prefect.server.schemas.schedules import CronSchedule
from prefect.utilities.templating import apply_values
from prefect.workers.process import ProcessWorker
from prefect_docker.worker import DockerWorker
from prefect_kubernetes.worker import KubernetesWorker
from ruamel.yaml import YAML

from flows.automations import AUTOMATIONS, SILENCE
from flows.deploy import POOL_TYPES, TEMPLATES, CannotDeploy, deploy
from flows.pipeline import pipeline
from flows.schedule import deployments
from flows.upkeep import upkeep
from tests.docker.kubernetes import container, pod, problems
from tests.docker.test_container_variables import OURS, PREFECT
from tests.flows.repository import CHECKOUT, commit, git

CONTENT = YAML(typ="safe", pure=True).load((CHECKOUT / "prefect.yaml").read_text(encoding="utf-8"))
DEPLOYMENTS, WEEKLY = (
    {each["work_pool"]["name"]: each for each in CONTENT["deployments"] if each["entrypoint"] == entrypoint}
    for entrypoint in ("flows/pipeline.py:pipeline", "flows/upkeep.py:upkeep")
)
WORKERS = {"machine": ProcessWorker, "docker": DockerWorker, "kubernetes": KubernetesWorker}
VARIABLES = {
    "DIFFUSION_REPOSITORY": "https://git.example/team/diffusion.git",
    "DIFFUSION_REVISION": "",
    "DIFFUSION_S3_ENDPOINT": "http://store:8333",
    "DIFFUSION_DVC_REMOTE": "s3://dvc/outputs",
    "DIFFUSION_IMAGE": "registry.example/diffusion-train:1",
    "DIFFUSION_NETWORK": "diffusion_servers",
    "DIFFUSION_SECRETS": "/srv/diffusion/secrets",
    "DIFFUSION_NAMESPACE": "training",
}
# Of the clone, which containers learn by the deployment and this machine's workers by their own variables.
OF_THE_PULL = set(re.findall(r"\{\{ \$(\w+) \}\}", str(CONTENT["pull"])))
SECRET = re.compile(r"KEY|PASSWORD|AUTH|TRACKING_URI|TOKEN")


def variables_of(value):
    """Return the variables that stand in a value of prefect.yaml."""
    return set(re.findall(r"\{\{ \$(\w+) \}\}", json.dumps(value)))


def unknown(environment):
    """Return the variables that nobody reads."""
    return set(environment) - OURS - PREFECT - OF_THE_PULL


def configuration(pool, **changes):
    """Return how the pool's worker would start a run, from the variables of the deployment and the pool's template."""
    worker = WORKERS[pool]
    if pool in TEMPLATES:
        template = json.loads((CHECKOUT / TEMPLATES[pool]).read_text(encoding="utf-8"))
    else:
        template = worker.get_default_base_job_template()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in VARIABLES.items():
            patch.setenv(name, value)
        job_variables = apply_values(DEPLOYMENTS[pool]["work_pool"]["job_variables"], {}, remove_notset=False)
    built = asyncio.run(
        worker.job_configuration.from_template_and_values(
            base_job_template=template, values=job_variables | changes, client=SimpleNamespace()
        )
    )
    built.prepare_for_flow_run(FlowRun(name="Wicked_Ölm 7", flow_id=uuid4()))
    return built


def test_each_pool_has_one_deployment_of_each_flow_and_a_worker():
    assert set(DEPLOYMENTS) == set(WEEKLY) == set(POOL_TYPES)
    assert len(DEPLOYMENTS) + len(WEEKLY) == len(CONTENT["deployments"])
    for pool in POOL_TYPES:
        nightly, weekly = (each[pool]["work_pool"]["job_variables"] for each in (DEPLOYMENTS, WEEKLY))
        # Verifying computes hashes alone.
        assert weekly.get("gpus", 0) == 0
        assert "device_requests" not in str(weekly)
        of_gpus = {"gpus", "container_create_kwargs"}
        assert {**weekly, **{name: nightly[name] for name in of_gpus & set(nightly)}} == nightly
    assert {name: worker.type for name, worker in WORKERS.items()} == POOL_TYPES


def test_names_are_unique_and_the_first_two_are_those_that_make_serve_runs(monkeypatch):
    monkeypatch.chdir(CHECKOUT)
    names = [each["name"] for each in CONTENT["deployments"]]
    assert len(set(names)) == len(names)
    assert [each.name for each in deployments()] == names[:2] == ["nightly", "weekly"]


@pytest.mark.parametrize("pool", WEEKLY)
def test_what_is_kept_is_verified_once_a_week_and_not_at_night(pool):
    deployment = WEEKLY[pool]
    (schedule,) = deployment["schedules"]
    cron = CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
    first, second = asyncio.run(cron.get_dates(2))
    assert second - first == timedelta(days=7)
    assert 8 <= first.hour <= 18
    assert upkeep.validate_parameters(deployment["parameters"]) == deployment["parameters"] == {"repair": True}


@pytest.mark.parametrize("pool", DEPLOYMENTS)
def test_it_runs_once_a_night_and_one_run_waits_for_the_other(pool):
    deployment = DEPLOYMENTS[pool]
    (schedule,) = deployment["schedules"]
    cron = CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
    first, second = asyncio.run(cron.get_dates(2))
    assert second - first == timedelta(days=1)
    assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}


@pytest.mark.parametrize("pool", DEPLOYMENTS)
def test_the_flow_takes_its_parameters(pool):
    parameters = DEPLOYMENTS[pool]["parameters"]
    assert pipeline.validate_parameters(parameters) == parameters
    assert set(parameters) == set(pipeline.parameters.properties)
    assert DEPLOYMENTS[pool]["entrypoint"] == "flows/pipeline.py:pipeline"


@pytest.mark.parametrize("pool", DEPLOYMENTS)
def test_every_variable_that_is_set_is_read_by_somebody(pool):
    environment = DEPLOYMENTS[pool]["work_pool"]["job_variables"]["env"]
    assert environment
    assert unknown(environment) == set()


@pytest.mark.parametrize(
    "misspelled",
    ["PREFECT_FLOWS_HEARTBEAT_SECONDS", "DIFFUSION_S3_ENDPOINTS", "DIFFUSION_DVC_CACHES", "DIFFUSION_REPO"],
)
def test_a_misspelled_variable_would_be_seen(misspelled):
    assert unknown({misspelled: "1"}) == {misspelled}


@pytest.mark.parametrize("pool", DEPLOYMENTS)
def test_no_secret_is_in_a_deployment(pool):
    deployment = DEPLOYMENTS[pool]
    names = variables_of(deployment) | set(deployment["work_pool"]["job_variables"]["env"])
    assert not {name for name in names if SECRET.search(name)}
    assert variables_of(deployment) <= set(VARIABLES)


def test_containers_are_told_what_they_do_not_share_with_their_worker():
    for pool in ("docker", "kubernetes"):
        environment = configuration(pool).env
        assert set(environment) >= OF_THE_PULL
        assert environment["DIFFUSION_S3_ENDPOINT"] == "http://store:8333"
        assert "{{" not in str(environment)


def test_a_run_of_this_machine_has_a_folder_of_its_own_and_the_workers_variables(monkeypatch):
    monkeypatch.setenv("DIFFUSION_S3_SECRET_KEY", "of the worker")
    built = configuration("machine")
    assert built.working_dir is None
    assert built.env["DIFFUSION_S3_SECRET_KEY"] == "of the worker"
    assert built.env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"


def test_a_container_of_docker_has_a_gpu_the_volume_the_secrets_and_the_network():
    engine = SimpleNamespace(version=lambda: {"Version": "28.0.0"})
    built = configuration("docker")
    settings = DockerWorker("docker")._build_container_settings(engine, built)
    # As docker-py turns them into what the engine is sent.
    sent = _create_container_args(settings | {"version": DEFAULT_DOCKER_API_VERSION})
    assert sent["image"] == "registry.example/diffusion-train:1"
    assert built._determine_image_pull_policy().value == "IfNotPresent"
    host = sent["host_config"]
    (gpu,) = host["DeviceRequests"]
    assert (gpu["Driver"], gpu["Count"], gpu["Capabilities"]) == ("nvidia", 1, [["gpu"]])
    assert host["Binds"] == ["diffusion:/var/lib/diffusion", "/srv/diffusion/secrets:/run/secrets:ro"]
    assert host["ShmSize"] == 2 * 1024**3
    assert host["AutoRemove"] is True
    assert not host.get("Privileged")
    assert host["NetworkMode"] == "diffusion_servers"
    assert list(sent["networking_config"]) == ["diffusion_servers"]
    assert sent["environment"]["DIFFUSION_CHECKPOINTS"] == "/var/lib/diffusion/checkpoints"
    assert sent["environment"]["DIFFUSION_COMPILE_CACHE"] == "/var/lib/diffusion/compiled"
    assert sent["environment"]["DIFFUSION_DOWNLOADS"] == "/var/lib/diffusion/downloads"


def test_a_job_of_kubernetes_is_the_one_that_we_mean():
    built = configuration("kubernetes")
    job = built.job_manifest
    assert problems(job, "V1Job") == []
    assert built.namespace == job["metadata"]["namespace"] == "training"
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?-", job["metadata"]["generateName"])
    # Whoever starts runs again is Prefect's automation.
    assert job["spec"]["backoffLimit"] == 0
    assert pod(job)["restartPolicy"] == "Never"
    run = container(job)
    assert run["image"] == "registry.example/diffusion-train:1"
    assert run["args"] == ["prefect", "flow-run", "execute"]
    assert run["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert run["envFrom"] == [{"secretRef": {"name": "diffusion"}}]
    assert all(set(each) == {"name", "value"} for each in run["env"])
    assert {each["name"]: each["value"] for each in run["env"]}["DIFFUSION_DVC_REMOTE"] == "s3://dvc/outputs"
    claims = [each["persistentVolumeClaim"] for each in pod(job)["volumes"] if "persistentVolumeClaim" in each]
    assert claims == [{"claimName": "diffusion"}]
    # None but its namespace's own, and no token of that.
    assert "serviceAccountName" not in pod(job)


def test_a_job_without_gpus_asks_for_none():
    job = configuration("kubernetes", gpus=0, service_account_name="reads-the-bucket").job_manifest
    assert problems(job, "V1Job") == []
    # Of nothing, every node has enough.
    assert container(job)["resources"]["limits"]["nvidia.com/gpu"] == 0
    assert pod(job)["serviceAccountName"] == "reads-the-bucket"


@pytest.mark.parametrize("revision", ["", "release"])
def test_a_run_clones_what_the_variables_name(revision, tmp_path, monkeypatch, prefect_server):
    origin = tmp_path / "diffusion.git"
    origin.mkdir()
    git(origin, "init", "--quiet")
    (origin / "which").write_text("main")
    commit(origin)
    git(origin, "branch", "release")
    (origin / "which").write_text("")
    commit(origin)
    monkeypatch.setenv("DIFFUSION_REPOSITORY", origin.as_uri())
    monkeypatch.setenv("DIFFUSION_REVISION", revision)
    monkeypatch.chdir(tmp_path)
    (step,) = CONTENT["pull"]
    assert set(step) == {"prefect.deployments.steps.git_clone"}
    clone = asyncio.run(run_steps([step], {}))["directory"]
    assert (tmp_path / clone / "which").read_text() == ("main" if revision else "")


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


@pytest.mark.parametrize("pool", DEPLOYMENTS)
def test_who_is_silent_for_three_heartbeats_is_dead(pool):
    environment = DEPLOYMENTS[pool]["work_pool"]["job_variables"]["env"]
    assert timedelta(seconds=3 * int(environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])) == SILENCE


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
