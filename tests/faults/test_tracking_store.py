"""No tracking server can hold a training, and what it does not take is not lost: a real MLflow server."""

import json
import os
import shutil
import signal
from contextlib import contextmanager

import pytest
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file

from diffusion_core.config.environment import Environment
from diffusion_core.lineage.dataset_version import DatasetVersion
from diffusion_core.lineage.outbox import Outbox
from diffusion_core.registry.tracking import training_run
from tests.faults.commands import is_killed, succeeds, wait_for
from tests.faults.test_end_of_training import equal
from tests.faults.timed_tracking import (
    STEP,
    TAKEN,
    Loses,
    answers,
    before_steps,
    ends,
    mlflow_server,
    signals,
    stored,
    timed,
    waited,
)
from tests.ports import free_port
from tests.registry.servers import serving

# Beside the two seconds of patience, on a busy machine.
SLACK = 1.5


@contextmanager
def continued_at_the_end(server):
    """Let a server that the block has stopped go on."""
    try:
        yield
    finally:
        os.killpg(server.pid, signal.SIGCONT)


@pytest.fixture
def folder(digits, tmp_path):
    project = tmp_path / "project"
    shutil.copytree(digits, project)
    content = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))
    content["train"] |= {"report_every_images": 32, "preview_every_images": 160}
    (project / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return project


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server that tests may stop and continue, each with an experiment of its own."""
    port = free_port()
    with mlflow_server(tmp_path_factory.mktemp("server"), port) as process:
        yield f"http://127.0.0.1:{port}", process


def tracked(address, experiment="diffusion"):
    """Return the only run of an experiment, its losses by step and the steps of its pictures."""
    client = MlflowClient(address)
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
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


def is_whole(address, folder, undisturbed, experiment="diffusion"):
    run, losses, pictures = tracked(address, experiment)
    assert run.info.status == "FINISHED"
    assert [step for step, _ in losses] == STEPS
    rows = [line.split(",") for line in (folder / "plots/loss.csv").read_text().splitlines()[1:]]
    assert losses == [(int(row[0]), pytest.approx(float(row[1]))) for row in rows]
    assert pictures == [0, 160, 320]
    assert equal(load_file(folder / "models/model.safetensors"), load_file(undisturbed / "models/model.safetensors"))


def test_a_server_that_is_down_costs_two_seconds_and_no_entry(folder, tmp_path, undisturbed):
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    ends(folder, address)
    # A server that is down uses all of it, so a longer patience would show.
    assert 2.0 <= waited(folder) < 2.0 + SLACK
    with mlflow_server(tmp_path / "server", port):
        done = succeeds(folder, "replay", **stored(address))
        assert "replay: the tracking store has taken" in done.stdout
        is_whole(address, folder, undisturbed)


# How a training would wait longer: at its begin and end, or a little at each report.
WAITS = {
    "at its ends": {"diffusion_core.registry.tracking:PATIENCE_SERVER": "4.0"},
    "at each report": {
        "diffusion_core.registry.tracking:Run.metrics": (
            "lambda run, *values, **step: (original(run, *values, **step), run._delivery.wait_for(run._outbox, 0.4))"
        )
    },
}


@pytest.mark.parametrize("place", WAITS)
def test_a_longer_wait_is_noticed(folder, place):
    """The control."""
    ends(folder, f"http://127.0.0.1:{free_port()}", setting=WAITS[place])
    assert waited(folder) > 2.0 + SLACK


@pytest.mark.parametrize("moment", ["before the training", "in its middle"])
def test_a_server_that_hangs_holds_no_training(folder, server, undisturbed, moment):
    """SIGSTOP: it accepts connections and never answers."""
    address, process = server
    setting = before_steps(step_5=signals(process, "SIGSTOP")) if moment == "in its middle" else None
    with continued_at_the_end(process):
        if setting is None:
            os.killpg(process.pid, signal.SIGSTOP)
        ends(folder, address, moment, setting)
        assert waited(folder) < 2.0 + SLACK
    succeeds(folder, "replay", **stored(address, moment))
    is_whole(address, folder, undisturbed, moment)


def test_a_server_that_dies_in_a_training_does_not_hold_it_and_gets_all_of_it_later(folder, tmp_path, undisturbed):
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with mlflow_server(tmp_path / "server", port) as process:
        ends(folder, address, setting=before_steps(step_5=signals(process, "SIGKILL")))
        assert not answers(address)
        assert waited(folder) < 2.0 + SLACK
    with mlflow_server(tmp_path / "server", port):
        succeeds(folder, "replay", **stored(address))
        is_whole(address, folder, undisturbed)


def lengthen(folder):
    """Let the training last until it is ended."""
    content = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    content["train"] |= {"images": 32 * 5000}
    (folder / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def test_term_ends_a_training_whose_server_hangs_with_a_checkpoint(folder, server):
    address, process = server
    lengthen(folder)
    setting = before_steps(step_5=signals(process, "SIGSTOP"), step_25="os.kill(os.getpid(), signal.SIGTERM)")
    with continued_at_the_end(process):
        assert timed(folder, address, "ended", setting).returncode == 143
        assert waited(folder) < 2.0 + SLACK
        assert list((folder / ".checkpoints").glob("*/step-*/manifest.json"))
    succeeds(folder, "replay", **stored(address, "ended"))
    run_of_it, losses, _ = tracked(address, "ended")
    assert run_of_it.info.status == "KILLED"
    steps = [step for step, _ in losses]
    assert steps == [32 * step for step in range(1, len(steps) + 1)]


def test_a_killed_training_logs_every_step_once_and_leaves_no_run_running(folder, tmp_path, undisturbed):
    """The server dies first, then the trainer; both come back."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with mlflow_server(tmp_path / "server", port) as process:
        setting = before_steps(step_5=signals(process, "SIGKILL"))
        is_killed(folder, "train", setting=setting, die_at=f"{STEP}:7", **stored(address))
        assert not answers(address)
    with mlflow_server(tmp_path / "server", port):
        succeeds(folder, "train", **stored(address))
        # A server that is slow takes the rest later.
        succeeds(folder, "replay", **stored(address))
        is_whole(address, folder, undisturbed)


def test_an_interrupted_training_that_nobody_resumes_is_killed_and_not_running(folder, server):
    address, _ = server
    store = stored(address, experiment="interrupted")
    is_killed(folder, "train", setting=before_steps(step_5=TAKEN), die_at=f"{STEP}:6", **store)
    (run_of_it, _, _) = tracked(address, "interrupted")
    assert run_of_it.info.status == "RUNNING"
    succeeds(folder, "replay", **store)
    (run_of_it, _, _) = tracked(address, "interrupted")
    assert run_of_it.info.status == "KILLED"


def test_a_lost_answer_makes_no_second_run(server, tmp_path):
    # Other values than MLflow's client has by itself are of the user, and stay.
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "2"
    address, _ = server
    with serving(Loses) as loses:
        loses.behind, loses.created, loses.path_of_lost = int(address.rpartition(":")[2]), 0, "runs/create"
        environment = Environment(tracking_uri=f"http://127.0.0.1:{loses.server_port}", experiment="lost")
        version = DatasetVersion("a", "d" * 64, None, "a")
        with training_run(environment, tmp_path / "c/one/outbox", params={}, dataset=version, tags={}) as tracking:
            wait_for((tmp_path / "c/one/outbox/sent").exists)
        # The thread goes on.
        wait_for(Outbox(tmp_path / "c/one/outbox").is_empty)
        assert loses.created == 1
        found, _, _ = tracked(address, "lost")
        assert (found.info.status, found.data.tags["run_key"]) == ("FINISHED", tracking.key)


def test_the_run_of_a_model_is_found_by_its_key(folder, tmp_path):
    succeeds(folder, "train")
    key = json.loads((folder / "models/run_info.json").read_text(encoding="utf-8"))["run_key"]
    (only,) = MlflowClient(f"sqlite:///{folder}/mlflow.db").search_runs(["1"], f"tags.run_key = '{key}'")
    assert only.info.status == "FINISHED"
