"""prefect.yaml's deployments, as the workers of their pools understand them."""

import asyncio
import json
import re
from datetime import timedelta
from types import SimpleNamespace
from uuid import uuid4

import pytest
from docker.constants import DEFAULT_DOCKER_API_VERSION
from docker.models.containers import _create_container_args
from prefect.client.schemas.objects import FlowRun
from prefect.deployments.steps.core import run_steps
from prefect.server.schemas.schedules import CronSchedule
from prefect.utilities.templating import apply_values
from prefect.workers.process import ProcessWorker
from prefect_docker.worker import DockerWorker
from prefect_kubernetes.worker import KubernetesWorker

from flows.automations import SILENCE
from flows.deploy import POOL_TYPES, TEMPLATES
from flows.pipeline import pipeline
from flows.schedule import deployments
from flows.upkeep import upkeep
from tests.docker.kubernetes import container, pod, problems
from tests.docker.test_container_variables import OURS, PREFECT
from tests.flows.prefect_yaml import CONTENT, DEPLOYMENTS, VARIABLES, WEEKLY
from tests.flows.repository import CHECKOUT, commit, git

WORKERS = {"machine": ProcessWorker, "docker": DockerWorker, "kubernetes": KubernetesWorker}
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


@pytest.mark.parametrize("pool", DEPLOYMENTS)
def test_who_is_silent_for_three_heartbeats_is_dead(pool):
    environment = DEPLOYMENTS[pool]["work_pool"]["job_variables"]["env"]
    assert timedelta(seconds=3 * int(environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])) == SILENCE
