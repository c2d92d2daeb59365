"""The nightly run on a team's servers: deployed, killed in mid-training, finished, and repeated."""

import os
import re
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from stack.home import open_home
from stack.postgres import program
from stack.processes import read_started
from tests.stack.project import Server, python, until, variables


@pytest.fixture(scope="module")
def finished(stack):
    """A run that was killed with its worker in mid-training and has ended; its id, and the images it had seen then."""
    deployed = python(stack, "flows.deploy")
    assert deployed.returncode == 0, deployed.stderr
    server = Server(stack)
    server.shorten_silence(45)
    run = server.run(lock="branch")
    until(lambda: max(saved_steps(stack), default=0) > 20, 180, "no checkpoint")
    kill_worker(stack)
    images = max(saved_steps(stack)) * 64
    # It still seems to run, and its worker comes back.
    assert server.get(f"/flow_runs/{run}")["state_type"] == "RUNNING"
    assert python(stack, "stack", "up").returncode == 0
    server.wait(run, {"CRASHED", "SCHEDULED", "PENDING"}, 180)
    server.wait(run, {"COMPLETED", "FAILED", "CANCELLED"}, 300)
    return run, images


def saved_steps(stack):
    names = [path.name.removeprefix("step-") for path in (stack / ".stack/checkpoints").glob("*/step-*")]
    return [int(name) for name in names if name.isdigit()]


def kill_worker(stack):
    """End the worker and all that it has started, at once, as a machine ends that loses its power."""
    worker = psutil.Process(read_started(stack / ".stack/started.json")["worker"].pid)
    family = [worker, *worker.children(recursive=True)]
    assert any("train" in each.cmdline() for each in family)
    for each in family:
        each.suspend()
    for each in family:
        each.kill()
    psutil.wait_procs(family, 10)


def tracking(stack, monkeypatch):
    uri = variables(stack)["DIFFUSION_TRACKING_URI"]
    name, word = re.search(r"//(.*):(.*)@", uri).groups()
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", word)
    return MlflowClient(re.sub("//.*@", "//", uri))


def test_a_run_whose_worker_was_killed_finishes_and_trains_nothing_twice(stack, finished):
    run, images = finished
    server = Server(stack)
    found = server.get(f"/flow_runs/{run}")
    assert found["state_type"] == "COMPLETED", server.log(run)
    assert found["run_count"] == 2
    until(lambda: "train: resumes after" in server.log(run), 30, "it began anew")
    went_on = re.search(r"train: resumes after ([\d,]+) images", server.log(run))
    assert int(went_on[1].replace(",", "")) >= images > 0
    names = [state["name"] for state in server.get(f"/flow_run_states/?flow_run_id={run}")]
    assert "Crashed" in names
    assert "AwaitingRetry" in names


def test_the_champion_is_what_that_run_trained(stack, finished, monkeypatch):
    client = tracking(stack, monkeypatch)
    champion = client.get_model_version_by_alias("diffusion", "champion")
    assert champion.tags["prefect_flow_run"] == finished[0]
    (training,) = client.search_runs(["1"])
    assert training.info.status == "FINISHED"
    assert training.data.metrics["frechet"] > 0
    # One run from its first image to its last, with no report twice.
    reports = [int(each.step) for each in client.get_metric_history(training.info.run_id, "train/loss")]
    assert reports == sorted(set(reports))
    assert reports[-1] == 12800


def files(folder):
    """The files below a folder; the worker may remove a clone meanwhile, which `Path.rglob` does not survive."""
    return [Path(place) / name for place, _, names in os.walk(folder) for name in names]


def test_runs_and_registry_are_in_postgresql_and_artifacts_in_s3(stack, finished):
    dumped = dump(stack)
    assert finished[0] in dumped["prefect"]
    assert "champion" in dumped["mlflow"]
    assert list((stack / ".stack/s3/mlflow").rglob("model.safetensors"))
    assert list((stack / ".stack/s3/dvc/outputs").rglob("*.dir"))
    # The servers keep nothing of these beside their stores.
    databases = [file for file in files(stack / ".stack") if file.suffix == ".db"]
    assert [file for file in databases if not file.is_relative_to(stack / ".stack/runs")] == []


def branch_of(stack, run):
    command = ["git", "for-each-ref", "--format=%(refname:short)", f"refs/heads/runs/*-{run[:8]}"]
    return subprocess.run(command, cwd=stack, capture_output=True, text=True, check=True).stdout.strip()


def test_a_clone_of_the_runs_branch_has_everything_and_nothing_is_left_to_do(stack, finished, place):
    branch = branch_of(stack, finished[0])
    clone = place / "clone"
    subprocess.run(["git", "clone", "--quiet", "--branch", branch, str(stack), str(clone)], check=True)
    known = variables(stack)
    for command in (["diffusion_core", "remote"], ["dvc", "pull"]):
        done = python(clone, *command, env=known)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (clone / "models/model.safetensors").exists()
    again = python(clone, "dvc", "repro", env=known)
    assert "Data and pipelines are up to date." in again.stdout, again.stdout


def test_a_second_run_from_a_new_clone_computes_nothing(stack, finished, monkeypatch):
    server = Server(stack)
    merge = ["git", "merge", "--quiet", "--ff-only", branch_of(stack, finished[0])]
    subprocess.run(merge, cwd=stack, check=True)
    run = server.run()
    assert server.wait(run, {"COMPLETED", "FAILED", "CRASHED"}, 180)["state_type"] == "COMPLETED", server.log(run)
    # The last lines come after the end.
    until(lambda: "is the champion already" in server.log(run), 30, "no decision")
    log = server.log(run)
    assert "ingest: 0 of 1,797 images are new" in log
    assert "Running stage 'train'" not in log
    shown = server.post("/artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}})
    # On a slow machine a stage has a bar too.
    assert {each["key"] for each in shown if each["type"] != "progress"} == {"dvc-lock", "run"}
    (version,) = tracking(stack, monkeypatch).search_model_versions("name = 'diffusion'")
    assert version.version == "1"


def test_a_run_that_cannot_start_is_left_alone(stack, finished):
    server = Server(stack)
    deployment = server.get("/deployments/name/pipeline/nightly")
    nowhere = [{"prefect.deployments.steps.git_clone": {"repository": "/nowhere"}}]
    path = f"/deployments/{deployment['id']}"
    server.client.patch(path, json={"pull_steps": nowhere}).raise_for_status()
    try:
        run = server.run()
        assert server.wait(run, {"CRASHED", "FAILED", "COMPLETED"}, 90)["state_type"] == "CRASHED"
        # The automation took less than a second for the run that had died.
        time.sleep(5)
        found = server.get(f"/flow_runs/{run}")
        assert (found["state_type"], found["run_count"]) == ("CRASHED", 0)
    finally:
        server.client.patch(path, json={"pull_steps": deployment["pull_steps"]}).raise_for_status()


def dump(stack):
    """All that each database holds, as text."""
    home = open_home(stack / ".stack")
    return {
        name: subprocess.run(
            [program("pg_dump"), name],
            env={**os.environ, **home.database_variables()},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for name in ("prefect", "mlflow", "mlflow_auth")
    }


def test_no_password_is_in_any_database_log_artifact_argument_or_file_of_a_run(stack, finished):
    home = open_home(stack / ".stack")
    words = [word.encode() for word in home.passwords.values()]
    texts = {f"database {name}": text.encode() for name, text in dump(stack).items()}
    for folder in ("logs", "s3", "checkpoints", "cache", "runs"):
        for file in files(stack / ".stack" / folder):
            with suppress(FileNotFoundError):
                # What a run that goes on must have on the disk, nobody else can read.
                if file.is_file() and file.stat().st_mode & 0o077:
                    texts[str(file)] = file.read_bytes()
    started = read_started(stack / ".stack/started.json")
    assert set(started) == {"postgres", "s3", "mlflow", "prefect", "worker"}
    for each in started.values():
        texts[f"arguments of {each.name}"] = " ".join(psutil.Process(each.pid).cmdline()).encode()
    leaks = [name for name, text in texts.items() if any(word in text for word in words)]
    assert leaks == []
    # The search finds what is there.
    assert any(word in (stack / ".stack/env").read_bytes() for word in words)
    assert (stack / ".stack/env").stat().st_mode & 0o077 == 0
    assert len(texts) > 50
