"""No tracking server can hold a training, and what it does not take is not lost: a real MLflow server."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file

from tests.faults.commands import command, run, succeeds, wait_for
from tests.faults.test_end_of_training import equal

# Beside the two seconds of patience: processes start, and a checkpoint is written.
SLACK = 10.0


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(address):
    try:
        urlopen(f"{address}/health", timeout=2).close()
        return True
    except (URLError, OSError):
        return False


@contextmanager
def mlflow_server(folder, port):
    """A real server with its database in a folder, in a process group of its own."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder)]
    server = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder
    )
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}"))
        yield server
    finally:
        os.killpg(server.pid, signal.SIGCONT)
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture
def folder(digits, tmp_path):
    project = tmp_path / "project"
    shutil.copytree(digits, project)
    content = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))
    content["train"] |= {"report_every_images": 32, "preview_every_images": 160}
    (project / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return project


def tracked(address):
    """Return the only run of a store, its losses by step and the steps of its pictures."""
    client = MlflowClient(address)
    ids = [each.experiment_id for each in client.search_experiments()]
    (run,) = client.search_runs(ids)
    losses = [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, "train/loss")]
    files = [file.path for file in client.list_artifacts(run.info.run_id, "images") if file.path.endswith(".png")]
    return run, losses, sorted(int(name.split("+")[2]) for name in files)


STEPS = [32 * step for step in range(1, 11)]


@pytest.fixture(scope="module")
def undisturbed(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(digits, folder, dirs_exist_ok=True)
    content = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    content["train"] |= {"report_every_images": 32, "preview_every_images": 160}
    (folder / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    began = time.monotonic()
    succeeds(folder, "train")
    return folder, time.monotonic() - began


def is_whole(address, folder, undisturbed):
    run, losses, pictures = tracked(address)
    assert run.info.status == "FINISHED"
    assert [step for step, _ in losses] == STEPS
    rows = [line.split(",") for line in (folder / "plots/loss.csv").read_text().splitlines()[1:]]
    assert losses == [(int(row[0]), pytest.approx(float(row[1]))) for row in rows]
    assert pictures == [160, 320]
    assert equal(load_file(folder / "models/model.safetensors"), load_file(undisturbed / "models/model.safetensors"))


def test_a_server_that_is_down_costs_two_seconds_and_no_entry(folder, tmp_path, undisturbed):
    reference, usual = undisturbed
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    began = time.monotonic()
    done = succeeds(folder, "train", DIFFUSION_TRACKING_URI=address)
    assert time.monotonic() - began < usual + SLACK
    assert "wait in .checkpoints/" in done.stderr
    with mlflow_server(tmp_path / "server", port):
        done = succeeds(folder, "replay", DIFFUSION_TRACKING_URI=address)
        assert "replay: the tracking store has taken" in done.stdout
        is_whole(address, folder, reference)


@pytest.mark.parametrize("moment", ["before the training", "in its middle"])
def test_a_server_that_hangs_holds_no_training(folder, tmp_path, undisturbed, moment):
    """SIGSTOP: it accepts connections and never answers."""
    reference, usual = undisturbed
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with mlflow_server(tmp_path / "server", port) as server:
        if moment == "before the training":
            os.killpg(server.pid, signal.SIGSTOP)
        environment = {**os.environ, "DIFFUSION_DEVICE": "cpu", "DIFFUSION_PRECISION": "float32"}
        began = time.monotonic()
        training = subprocess.Popen(
            command("train"),
            cwd=folder,
            env=environment | {"DIFFUSION_TRACKING_URI": address},
            stderr=subprocess.PIPE,
            text=True,
        )
        if moment == "in its middle":
            wait_for(lambda: list((folder / ".checkpoints").glob("*/outbox/sent")))
            os.killpg(server.pid, signal.SIGSTOP)
        _, errors = training.communicate(timeout=120)
        assert training.returncode == 0, errors
        assert time.monotonic() - began < usual + 2.0 + SLACK
        os.killpg(server.pid, signal.SIGCONT)
        succeeds(folder, "replay", DIFFUSION_TRACKING_URI=address)
        is_whole(address, folder, reference)


def test_term_ends_a_training_whose_server_hangs_with_a_checkpoint(folder, tmp_path):
    content = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "DIFFUSION_DEVICE": "cpu", "DIFFUSION_PRECISION": "float32"}
    environment |= {"DIFFUSION_TRACKING_URI": address}
    long = {"train": content["train"] | {"images": 32 * 5000}}
    with mlflow_server(tmp_path / "server", port) as server:
        (folder / "params.yaml").write_text(yaml.safe_dump(content | long), encoding="utf-8")
        training = subprocess.Popen(command("train"), cwd=folder, env=environment)
        wait_for(lambda: list((folder / ".checkpoints").glob("*/outbox/sent")))
        os.killpg(server.pid, signal.SIGSTOP)
        time.sleep(1.0)
        began = time.monotonic()
        training.send_signal(signal.SIGTERM)
        assert training.wait(60) == 143
        assert time.monotonic() - began < 2.0 + SLACK
        assert list((folder / ".checkpoints").glob("*/step-*/manifest.json"))
        os.killpg(server.pid, signal.SIGCONT)
        succeeds(folder, "replay", DIFFUSION_TRACKING_URI=address)
        run_of_it, losses, _ = tracked(address)
        assert run_of_it.info.status == "KILLED"
        steps = [step for step, _ in losses]
        assert steps == [32 * step for step in range(1, len(steps) + 1)]


def test_a_killed_training_logs_every_step_once_and_leaves_no_run_running(folder, tmp_path, undisturbed):
    """The server dies first, then the trainer; both come back."""
    reference, _ = undisturbed
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with mlflow_server(tmp_path / "server", port):
        die = "diffusion_core.training.trainer:Trainer._train_step:7"
        assert run(folder, "train", die_at=die, DIFFUSION_TRACKING_URI=address).returncode == -signal.SIGKILL
    with mlflow_server(tmp_path / "server", port):
        succeeds(folder, "train", DIFFUSION_TRACKING_URI=address)
        # A server that is slow takes the rest later.
        succeeds(folder, "replay", DIFFUSION_TRACKING_URI=address)
        is_whole(address, folder, reference)


def test_an_interrupted_training_that_nobody_resumes_is_killed_and_not_running(folder, tmp_path):
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with mlflow_server(tmp_path / "server", port):
        die = "diffusion_core.training.trainer:Trainer._train_step:3"
        assert run(folder, "train", die_at=die, DIFFUSION_TRACKING_URI=address).returncode == -signal.SIGKILL
        (run_of_it, _, _) = tracked(address)
        assert run_of_it.info.status == "RUNNING"
        succeeds(folder, "replay", DIFFUSION_TRACKING_URI=address)
        (run_of_it, _, _) = tracked(address)
        assert run_of_it.info.status == "KILLED"


def test_the_run_of_a_model_is_found_by_its_key(folder, tmp_path):
    succeeds(folder, "train")
    key = json.loads((folder / "models/run_info.json").read_text(encoding="utf-8"))["run_key"]
    (only,) = MlflowClient(f"sqlite:///{folder}/mlflow.db").search_runs(["1"], f"tags.run_key = '{key}'")
    assert only.info.status == "FINISHED"
