import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import torch
from pydantic import SecretStr

from diffusion_core.data.dataset import ImageDataset
from diffusion_core.errors import UserError
from diffusion_core.lineage.checkpoints import only_training
from diffusion_core.lineage.saved_model import load_model
from diffusion_core.registry.sending import find_run
from diffusion_core.registry.tracking import Run
from diffusion_core.runtime import device
from diffusion_core.runtime.threads import ThreadChoice
from diffusion_core.samplers.ddim import DDIM
from diffusion_core.stages import plan, preview, train
from diffusion_core.stages.paths import LOSS, MODELS, PREPARED, RUN_INFO, VALIDATION
from diffusion_core.training.checkpoint import load_newest
from diffusion_core.training.trainer import Trainer


def run_info():
    return json.loads(RUN_INFO.read_text(encoding="utf-8"))


def recorded(run_key):
    client = mlflow.MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")
    return client.get_run(find_run(client, run_key))


def test_training_leaves_a_model_its_history_and_its_run(project, environment):
    train.run(project.train, environment)
    model = load_model(MODELS)
    assert model.diffusion.num_classes == 10
    assert model.class_counts == ImageDataset.open(PREPARED, "train").class_counts
    dataset = json.loads((MODELS / "model.json").read_text(encoding="utf-8"))["dataset"]
    assert dataset["digest"] == run_info()["dataset_digest"]
    with LOSS.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["images"]) for row in rows] == [64, 128, 192, 256, 320]
    with VALIDATION.open(encoding="utf-8") as file:
        validated = list(csv.DictReader(file))
    assert [int(float(row["images"])) for row in validated] == [128, 256, 320]
    run = recorded(run_info()["run_key"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["validation/loss"] == pytest.approx(float(validated[-1]["loss"]))
    assert run_info()["model_images"] == 320
    assert run.data.params["train.network.dim"] == "8"
    assert run.data.metrics["train/loss"] == pytest.approx(float(rows[-1]["loss"]))
    assert run.inputs.dataset_inputs[0].dataset.digest
    assert list(Path("mlruns").rglob("*samples*training*.png")) or list(
        Path("mlartifacts").rglob("*samples*training*.png")
    )
    # The last checkpoint stays, until DVC has recorded the model.
    (folder,) = Path(".checkpoints").iterdir()
    assert load_newest(folder).step == 10


def test_the_self_check_is_told_and_is_a_tag_of_the_run(project, environment, capsys, needs_bfloat16):
    train.run(project.train, environment.model_copy(update={"precision": "bfloat16"}))
    tag = recorded(run_info()["run_key"]).data.tags["self_check"]
    assert tag.startswith("bfloat16, eager: passed, the ")
    assert f"train: self-check: {tag}" in capsys.readouterr().out


def test_windows_change_the_order_and_are_read_ahead(project, environment, capsys, monkeypatch):
    """Images that do not fit into memory are told, with the key that helps."""
    monkeypatch.setattr(train, "free_memory", lambda: 100)
    train.run(project.train, environment)
    assert "of memory are free: with train.shuffle_window they are read in long pieces" in capsys.readouterr().out
    whole = (MODELS / "model.safetensors").read_bytes()
    windows = project.train.model_copy(update={"shuffle_window": 70})
    asked = []
    read_ahead = ImageDataset.read_ahead
    monkeypatch.setattr(
        ImageDataset, "read_ahead", lambda self, rows: (asked.append(len(rows)), read_ahead(self, rows))
    )
    train.run(windows, environment)
    assert "shuffle_window" not in capsys.readouterr().out
    assert asked == [70 + 32] + [32] * 9
    assert (MODELS / "model.safetensors").read_bytes() != whole


@pytest.mark.parametrize("failures", [1, 2])
def test_a_preview_that_finds_no_memory_does_not_cost_the_training(project, environment, failures, monkeypatch, caplog):
    generate, forgotten, forget = preview.generate, [], Trainer.forget_recording

    def refused(*arguments, **options):
        if len(forgotten) == 0 or failures == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(*arguments, **options)

    monkeypatch.setattr(preview, "generate", refused)

    def forgets(trainer):
        forget(trainer)
        if trainer.step > 0:
            forgotten.append(trainer.step)

    monkeypatch.setattr(Trainer, "forget_recording", forgets)
    train.run(project.train, environment)
    assert forgotten, "a recorded step gives its memory back"
    pictures = [*Path("mlruns").rglob("*samples*training*.png"), *Path("mlartifacts").rglob("*samples*training*.png")]
    assert bool(pictures) == (failures == 1)
    assert ("no preview is made (CUDA out of memory)" in caplog.text) == (failures == 2)


def test_the_number_of_threads_is_part_of_a_checkpoint(project, environment, stops_after, monkeypatch):
    """On a machine where one thread is ten times as fast as two."""
    used, now = [], [0.0]

    def clock():
        used.append(torch.get_num_threads())
        now[0] += 1.0 if torch.get_num_threads() == 2 else 0.1
        return now[0]

    before = torch.get_num_threads()
    monkeypatch.setattr(device, "ThreadChoice", lambda _: ThreadChoice((2, 1), clock))
    environment = environment.model_copy(update={"threads": "auto"})
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "steps", Trainer.steps)
        stops_after(8)
        with pytest.raises(SystemExit):
            train.run(project.train, environment)
    assert used[0] == 2
    assert used[-1] == 1
    assert torch.get_num_threads() == before

    used.clear()
    train.run(project.train, environment)
    assert set(used) == {1}
    assert torch.get_num_threads() == before


def test_a_signal_that_comes_after_the_decision_to_save_still_leaves_a_checkpoint(project, environment, monkeypatch):
    metrics = Run.metrics

    def interrupted(self, *arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        metrics(self, *arguments, **options)

    monkeypatch.setattr(Run, "metrics", interrupted)
    with pytest.raises(SystemExit) as left:
        train.run(project.train, environment)
    assert left.value.code == 143
    (folder,) = Path(".checkpoints").iterdir()
    # Reports come every second step; the signal came with the first of them.
    assert load_newest(folder).step == 3


def test_a_checkpoint_of_another_network_is_refused(project, environment, stops_after, monkeypatch):
    stops_after(2)
    with pytest.raises(SystemExit):
        train.run(project.train, environment)
    options = plan.options

    def wider(*arguments):
        network, process = options(*arguments)
        return network | {"dim": 12}, process

    monkeypatch.setattr(plan, "options", wider)
    with pytest.raises(UserError, match=r"does not fit this network.*remove .checkpoints"):
        train.run(project.train, environment)


@pytest.mark.parametrize("place", ["metrics", "image"])
def test_a_failure_after_the_last_step_does_not_cost_the_training(project, environment, place, monkeypatch):
    log = getattr(Run, place)

    def fail(run, *arguments, step, **options):
        if step == project.train.images:
            raise RuntimeError("of another kind")
        log(run, *arguments, step=step, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Run, place, fail)
        with pytest.raises(RuntimeError, match="of another kind"):
            train.run(project.train, environment)
    (checkpoint,) = Path(".checkpoints").glob("*/step-*")
    assert checkpoint.name == "step-000000010"
    train.run(project.train, environment)
    assert run_info()["run_key"]


def test_a_dataset_of_another_size_than_params_say_is_told(project, environment):
    network = project.train.network.model_copy(update={"dim_mults": (1, 1, 1, 1, 1)})
    with pytest.raises(UserError, match=r"data/prepared are 8 x 8; with 5 levels.*multiple of 16.*dvc repro prepare"):
        train.run(project.train.model_copy(update={"network": network}), environment)
    assert not MODELS.exists()


def test_a_second_training_of_the_same_is_refused_while_the_first_lives_and_not_after_it_was_killed(project):
    params = Path("params.yaml")
    params.write_text(params.read_text(encoding="utf-8").replace("images: 320", "images: 320000"), encoding="utf-8")
    command = [sys.executable, "-m", "diffusion_core", "train"]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        while "train:" not in first.stderr.readline():
            assert first.poll() is None
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert second.returncode == 2
        assert "error: another training writes models in " in second.stderr
        assert f"(process {first.pid}): wait until it ends, stop it, " in second.stderr
    finally:
        first.kill()
        first.communicate()
    (folder,) = Path(".checkpoints").iterdir()
    with only_training(folder):
        pass


def test_other_parameters_do_not_find_the_checkpoint(project, environment, stops_after):
    stops_after(2)
    with pytest.raises(SystemExit):
        train.run(project.train, environment)
    (one,) = Path(".checkpoints").iterdir()
    stops_after(3)
    with pytest.raises(SystemExit):
        train.run(project.train.model_copy(update={"seed": 1}), environment)
    other = next(path for path in Path(".checkpoints").iterdir() if path != one)
    assert [path.name for path in other.glob("step-*")] == ["step-000000004"]


def test_a_tracking_server_that_is_not_there_is_told_and_the_training_goes_on(project, environment, caplog):
    nowhere = environment.model_copy(update={"tracking_uri": SecretStr("http://someone:secret@127.0.0.1:9")})
    train.run(project.train, nowhere)
    assert "the tracking store takes nothing" in caplog.text
    assert "wait in .checkpoints/" in caplog.text
    assert "secret" not in caplog.text
    assert (MODELS / "model.safetensors").exists()


def test_term_to_the_real_process_ends_it_with_143_and_a_checkpoint(project):
    params = Path("params.yaml")
    params.write_text(params.read_text(encoding="utf-8").replace("images: 320", "images: 320000"), encoding="utf-8")
    child = subprocess.Popen([sys.executable, "-m", "diffusion_core", "train"], stderr=subprocess.PIPE, text=True)
    line = ""
    while "train:" not in line:
        line = child.stderr.readline()
        assert line, "it ended before its first report"
    child.terminate()
    child.communicate(timeout=60)
    assert child.returncode == 143
    assert list(Path(".checkpoints").glob("*/step-*/manifest.json"))


def test_a_signal_in_the_last_preview_leaves_it_to_the_next_start(project, environment, monkeypatch):
    step = DDIM.step

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(DDIM, "step", interrupted)
        with pytest.raises(SystemExit) as stopped:
            train.run(project.train, environment)
    assert stopped.value.code == 143
    (folder,) = Path(".checkpoints").iterdir()
    assert load_newest(folder).step == 10
    train.run(project.train, environment)
    assert len([*Path().glob("ml[ra]*/**/*samples*training*.png")]) == 1
