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
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file

from diffusion_core.config.environment import Environment
from diffusion_core.lineage.outbox import Outbox
from diffusion_core.lineage.provenance import DatasetVersion
from diffusion_core.registry.tracking import training_run
from tests.faults.commands import run, succeeds, wait_for
from tests.faults.test_end_of_training import equal
from tests.registry.servers import serving

# Beside the two seconds of patience, on a busy machine.
SLACK = 1.5

# `diffusion train`, which writes the seconds that it waited for the store: before its first step, and after its last.
TIMED = """
import sys, time
from contextlib import contextmanager
from pathlib import Path
from diffusion_core.registry import tracking
from diffusion_core.registry.connection import is_server

if len(sys.argv) > 1:
    tracking.PATIENCE_SERVER = float(sys.argv[1])
original = tracking.training_run

@contextmanager
def timed(*arguments, **options):
    block = original(*arguments, **options)
    began = time.monotonic()
    run = block.__enter__()
    waited = time.monotonic() - began
    try:
        yield run
    finally:
        began = time.monotonic()
        block.__exit__(*sys.exc_info())
        Path("waited").write_text(str(waited + time.monotonic() - began))

tracking.training_run = timed
sys.argv = ["diffusion", "train"]
from diffusion_core.__main__ import main
main()
"""


def timed(folder, address, *patience):
    """Start a training that measures how long it waits for the store."""
    environment = {**os.environ, "DIFFUSION_DEVICE": "cpu", "DIFFUSION_PRECISION": "float32"}
    command = [sys.executable, "-c", TIMED, *patience]
    return subprocess.Popen(
        command, cwd=folder, env=environment | {"DIFFUSION_TRACKING_URI": address}, stderr=subprocess.PIPE, text=True
    )


def ends(training):
    """Wait for the end of a training; return its messages."""
    _, errors = training.communicate(timeout=120)
    assert training.returncode == 0, errors
    return errors


def waited(folder):
    return float((folder / "waited").read_text(encoding="utf-8"))


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
    succeeds(folder, "train")
    return folder


def is_whole(address, folder, undisturbed):
    run, losses, pictures = tracked(address)
    assert run.info.status == "FINISHED"
    assert [step for step, _ in losses] == STEPS
    rows = [line.split(",") for line in (folder / "plots/loss.csv").read_text().splitlines()[1:]]
    assert losses == [(int(row[0]), pytest.approx(float(row[1]))) for row in rows]
    assert pictures == [160, 320]
    assert equal(load_file(folder / "models/model.safetensors"), load_file(undisturbed / "models/model.safetensors"))


def test_a_server_that_is_down_costs_two_seconds_and_no_entry(folder, tmp_path, undisturbed):
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    assert "wait in .checkpoints/" in ends(timed(folder, address))
    # A server that is down uses all of it, so a longer patience would show.
    assert 2.0 <= waited(folder) < 2.0 + SLACK
    with mlflow_server(tmp_path / "server", port):
        done = succeeds(folder, "replay", DIFFUSION_TRACKING_URI=address)
        assert "replay: the tracking store has taken" in done.stdout
        is_whole(address, folder, undisturbed)


def test_a_longer_patience_is_noticed(folder):
    """The control."""
    ends(timed(folder, f"http://127.0.0.1:{free_port()}", "4"))
    assert waited(folder) > 2.0 + SLACK


@pytest.mark.parametrize("moment", ["before the training", "in its middle"])
def test_a_server_that_hangs_holds_no_training(folder, tmp_path, undisturbed, moment):
    """SIGSTOP: it accepts connections and never answers."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with mlflow_server(tmp_path / "server", port) as server:
        if moment == "before the training":
            os.killpg(server.pid, signal.SIGSTOP)
        training = timed(folder, address)
        if moment == "in its middle":
            wait_for(lambda: list((folder / ".checkpoints").glob("*/outbox/sent")))
            os.killpg(server.pid, signal.SIGSTOP)
        ends(training)
        assert waited(folder) < 2.0 + SLACK
        os.killpg(server.pid, signal.SIGCONT)
        succeeds(folder, "replay", DIFFUSION_TRACKING_URI=address)
        is_whole(address, folder, undisturbed)


def lengthen(folder):
    """Let the training last until it is ended."""
    content = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    content["train"] |= {"images": 32 * 5000}
    (folder / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def test_term_ends_a_training_whose_server_hangs_with_a_checkpoint(folder, tmp_path):
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    lengthen(folder)
    with mlflow_server(tmp_path / "server", port) as server:
        training = timed(folder, address)
        wait_for(lambda: list((folder / ".checkpoints").glob("*/outbox/sent")))
        os.killpg(server.pid, signal.SIGSTOP)
        time.sleep(1.0)
        training.send_signal(signal.SIGTERM)
        training.communicate(timeout=60)
        assert training.returncode == 143
        assert waited(folder) < 2.0 + SLACK
        assert list((folder / ".checkpoints").glob("*/step-*/manifest.json"))
        os.killpg(server.pid, signal.SIGCONT)
        succeeds(folder, "replay", DIFFUSION_TRACKING_URI=address)
        run_of_it, losses, _ = tracked(address)
        assert run_of_it.info.status == "KILLED"
        steps = [step for step, _ in losses]
        assert steps == [32 * step for step in range(1, len(steps) + 1)]


def test_a_killed_training_logs_every_step_once_and_leaves_no_run_running(folder, tmp_path, undisturbed):
    """The server dies first, then the trainer; both come back."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with mlflow_server(tmp_path / "server", port):
        die = "diffusion_core.training.trainer:Trainer._train_step:7"
        assert run(folder, "train", die_at=die, DIFFUSION_TRACKING_URI=address).returncode == -signal.SIGKILL
    with mlflow_server(tmp_path / "server", port):
        succeeds(folder, "train", DIFFUSION_TRACKING_URI=address)
        # A server that is slow takes the rest later.
        succeeds(folder, "replay", DIFFUSION_TRACKING_URI=address)
        is_whole(address, folder, undisturbed)


def test_an_interrupted_training_that_nobody_resumes_is_killed_and_not_running(folder, tmp_path):
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    lengthen(folder)
    with mlflow_server(tmp_path / "server", port):
        training = timed(folder, address)
        # A slow server makes the run later than the first steps.
        wait_for(lambda: list((folder / ".checkpoints").glob("*/outbox/sent")))
        training.kill()
        training.communicate()
        (run_of_it, _, _) = tracked(address)
        assert run_of_it.info.status == "RUNNING"
        succeeds(folder, "replay", DIFFUSION_TRACKING_URI=address)
        (run_of_it, _, _) = tracked(address)
        assert run_of_it.info.status == "KILLED"


class _Loses(BaseHTTPRequestHandler):
    """Passes requests to a server, and loses the first answer to `runs/create`."""

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        connection = HTTPConnection("127.0.0.1", self.server.behind)
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if self.path.endswith("runs/create"):
            self.server.created += 1
            if self.server.created == 1:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers["Content-Type"])
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT = do_PATCH = do_GET

    def log_message(self, *arguments):
        pass


def test_a_lost_answer_makes_no_second_run(tmp_path):
    # Other values than MLflow's client has by itself are of the user, and stay.
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "2"
    with mlflow_server(tmp_path / "server", port := free_port()), serving(_Loses) as loses:
        loses.behind, loses.created = port, 0
        environment = Environment(tracking_uri=f"http://127.0.0.1:{loses.server_port}")
        version = DatasetVersion("a", "d" * 64, None, "a")
        with training_run(environment, tmp_path / "c/one/outbox", params={}, dataset=version, tags={}) as tracking:
            wait_for((tmp_path / "c/one/outbox/sent").exists)
        # The thread goes on.
        wait_for(Outbox(tmp_path / "c/one/outbox").is_empty)
        assert loses.created == 1
        found, _, _ = tracked(f"http://127.0.0.1:{port}")
        assert (found.info.status, found.data.tags["run_key"]) == ("FINISHED", tracking.key)


def test_the_run_of_a_model_is_found_by_its_key(folder, tmp_path):
    succeeds(folder, "train")
    key = json.loads((folder / "models/run_info.json").read_text(encoding="utf-8"))["run_key"]
    (only,) = MlflowClient(f"sqlite:///{folder}/mlflow.db").search_runs(["1"], f"tags.run_key = '{key}'")
    assert only.info.status == "FINISHED"
