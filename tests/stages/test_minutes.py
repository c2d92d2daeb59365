"""`train.minutes` ends a training in time, as a finished one, and counts the time of all its processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import yaml

from diffusion_core.lineage.checkpoints import is_finished
from diffusion_core.registry.sending import find_run
from diffusion_core.stages import cost, train
from diffusion_core.stages.paths import LOSS, MODELS, RUN_INFO, VALIDATION
from diffusion_core.training.checkpoint import load_newest
from diffusion_core.training.trainer import Trainer


class Clock:
    """Stands for the time that a budget counts; a step takes a minute."""

    now = 0.0
    # TERM comes in this step.
    stop_in = 0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock, steps = Clock(), Trainer.steps

    def timed(self):
        for report in steps(self):
            clock.now += 60.0
            if report.step == clock.stop_in:
                os.kill(os.getpid(), signal.SIGTERM)
            yield report

    monkeypatch.setattr(cost, "time", clock)
    monkeypatch.setattr(Trainer, "steps", timed)
    return clock


def model():
    return (MODELS / "model.safetensors").read_bytes()


def run_info():
    return json.loads(RUN_INFO.read_text(encoding="utf-8"))


def test_a_training_ends_after_its_minutes_as_one_of_so_many_images(project, environment, clock, capsys):
    train.run(project.train.model_copy(update={"minutes": 3.0}), environment)
    assert "train: ends after 96 of 320 images, because train.minutes is 3\n" in capsys.readouterr().out
    client = mlflow.MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")
    run = client.get_run(find_run(client, run_info()["run_key"]))
    assert (run.info.status, run.data.tags["trained_images"]) == ("FINISHED", "96")
    assert run_info()["trained_images"] == 96
    assert run.data.metrics["cost/train_device_hours"] == pytest.approx(3 / 60)
    assert VALIDATION.read_text(encoding="utf-8").splitlines()[-1].startswith("96,")
    assert LOSS.read_text(encoding="utf-8").splitlines()[-1].startswith("96,")
    (folder,) = Path(".checkpoints").iterdir()
    assert is_finished(folder)
    weights = model()
    # What DVC had not recorded is made again of the last checkpoint, without a further step.
    train.run(project.train.model_copy(update={"minutes": 3.0}), environment)
    assert (load_newest(folder).step, model()) == (3, weights)
    # So many images make the same model again, on any machine.
    train.run(project.train.model_copy(update={"images": 96}), environment)
    assert model() == weights


def test_images_end_a_training_that_has_minutes_left(project, environment, clock, capsys):
    train.run(project.train.model_copy(update={"minutes": 11.0}), environment)
    assert run_info()["trained_images"] == 320
    assert "train.minutes" not in capsys.readouterr().out


@pytest.mark.parametrize(("is_counted", "images"), [(True, 160), (False, 256)])
def test_a_resumed_training_has_the_minutes_that_are_left(project, environment, clock, monkeypatch, is_counted, images):
    settings = project.train.model_copy(update={"minutes": 5.0})
    clock.stop_in = 3
    with pytest.raises(SystemExit):
        train.run(settings, environment)
    # No training runs in this hour.
    clock.now += 3600.0
    if not is_counted:
        # The control: without the time in the checkpoint, it has five minutes again.
        (state,) = Path(".checkpoints").glob("*/step-*/state.json")
        assert json.loads(state.read_text(encoding="utf-8"))["seconds"] == 180.0
        monkeypatch.setattr(train, "Cost", lambda device, count, _: cost.Cost(device, count))
    train.run(settings, environment)
    assert run_info()["trained_images"] == images


@pytest.mark.slow
def test_several_processes_end_after_the_same_step(project):
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params["train"] |= {"minutes": 0.0001, "images": 3200}
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    variables = {"DIFFUSION_DEVICE": "cpu", "DIFFUSION_PRECISION": "float32", "DIFFUSION_PROCESSES": "2"}
    command = [sys.executable, "-m", "diffusion_core", "train"]
    for _ in range(2):
        done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "train: ends after 32 of 3,200 images" in done.stdout
