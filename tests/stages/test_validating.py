"""The weights of the lowest validation loss become the model, also of a training that was stopped."""

import csv
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from diffusion_core.errors import UserError
from diffusion_core.lineage.saved_model import load_model
from diffusion_core.stages import train
from diffusion_core.stages.paths import MODELS, RUN_INFO, VALIDATION
from diffusion_core.training.checkpoint import load_newest
from diffusion_core.training.trainer import Trainer
from diffusion_core.training.validation import Validation


def trained(project, environment, **changes):
    # With the number of threads that it says, a training ends with the same weights however often it was stopped.
    train.run(project.train.model_copy(update=changes), environment.model_copy(update={"threads": 1}))
    return load_model(MODELS).diffusion.state_dict()


@pytest.fixture(autouse=True)
def _two_threads():
    """Else a validation before the first step would have the one thread of the steps by chance."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in other)


def test_the_model_is_the_one_of_the_lowest_validation_loss(project, environment, monkeypatch):
    """Of a training that becomes worse; the weights of 128 images are those of a training that ends there."""
    worse = {"learning_rate": 0.06, "warmup_images": 0, "validate_every_images": 128, "validation_share": 0.5}
    monkeypatch.setattr("diffusion_core.training.ema.EMA.decay", lambda *_: 0.0)
    best = trained(project, environment, **worse)
    with VALIDATION.open(encoding="utf-8") as file:
        losses = {int(float(row["images"])): float(row["loss"]) for row in csv.DictReader(file)}
    images = min(losses, key=losses.get)
    assert images < 320
    assert json.loads(RUN_INFO.read_text())["model_images"] == images
    last = trained(project, environment, **worse | {"validation_share": 0.0})
    assert VALIDATION.read_text(encoding="utf-8").count("\n") == 1
    assert not equal(best, last)
    early = trained(project, environment, **worse | {"validation_share": 0.0, "images": images})
    assert equal(best, early)


@pytest.mark.parametrize("step", [4, 5, 8, 9])
def test_a_training_that_is_stopped_keeps_its_best(project, environment, stops_after, monkeypatch, step):
    """Of one that becomes worse after 128 images; 4 and 8 are the steps where validation is due."""
    worse = {"learning_rate": 0.06, "warmup_images": 0, "validation_share": 0.5}
    undisturbed = trained(project, environment, **worse)
    assert json.loads(RUN_INFO.read_text())["model_images"] < 320
    rows = VALIDATION.read_text(encoding="utf-8")
    shutil.rmtree(".checkpoints")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "steps", Trainer.steps)
        stops_after(step - 1)
        with pytest.raises(SystemExit):
            trained(project, environment, **worse)
    (folder,) = Path(".checkpoints").iterdir()
    checkpoint = load_newest(folder)
    assert checkpoint.step == step
    assert checkpoint.state["validation_due"] == (step in (4, 8))
    assert ("best" in checkpoint.tensors) == (step > 4)
    again = trained(project, environment, **worse)
    assert VALIDATION.read_text(encoding="utf-8") == rows
    assert equal(again, undisturbed)


def test_a_checkpoint_that_has_lost_its_best_is_refused(project, environment, stops_after, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "steps", Trainer.steps)
        patch.setattr(Validation, "tensors", lambda _: {})
        stops_after(5)
        with pytest.raises(SystemExit):
            train.run(project.train, environment)
    with pytest.raises(UserError, match=r"its best weights are not those of this network\): remove .checkpoints"):
        train.run(project.train, environment)


@pytest.mark.parametrize("refusals", [1, 2, 20])
def test_a_validation_without_memory_takes_fewer_images_at_a_time_and_then_none(
    project, environment, monkeypatch, caplog, refusals
):
    measure, asked = Validation.measure, []

    def refused(self, diffusion, images, batch_size):
        asked.append((images, batch_size))
        if images == 128 and len(asked) <= refusals:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return measure(self, diffusion, images, batch_size)

    monkeypatch.setattr(Validation, "measure", refused)
    train.run(project.train, environment)
    sizes = [size for images, size in asked if images == 128]
    assert sizes == [32, 16, 8, 4, 2, 1][: min(refusals + 1, 6)]
    rows = VALIDATION.read_text(encoding="utf-8").splitlines()[1:]
    assert [row.partition(",")[0] for row in rows] == (["256", "320"] if refusals == 20 else ["128", "256", "320"])
    assert ("the validation loss after 128 images is not measured" in caplog.text) == (refusals == 20)


def test_term_ends_a_validation_and_the_next_start_makes_it(project, environment, monkeypatch):
    undisturbed = trained(project, environment)
    rows = VALIDATION.read_text(encoding="utf-8")
    shutil.rmtree(".checkpoints")
    losses = Validation.losses

    def during(self, diffusion, batch_size):
        os.kill(os.getpid(), signal.SIGTERM)
        return losses(self, diffusion, batch_size)

    with monkeypatch.context() as patch:
        patch.setattr(Validation, "losses", during)
        with pytest.raises(SystemExit) as left:
            trained(project, environment)
    assert left.value.code == 143
    (folder,) = Path(".checkpoints").iterdir()
    checkpoint = load_newest(folder)
    assert (checkpoint.step, checkpoint.state["validation_due"], checkpoint.state["validation"]["rows"]) == (
        4,
        True,
        [],
    )
    assert equal(trained(project, environment), undisturbed)
    assert VALIDATION.read_text(encoding="utf-8") == rows


def test_a_signal_is_looked_for_before_each_evaluation(project, environment, monkeypatch):
    hooked = []
    monkeypatch.setattr(
        Validation, "measure", lambda self, diffusion, *_: hooked.append(len(diffusion.model._forward_pre_hooks))
    )
    train.run(project.train, environment)
    assert hooked == [1, 1, 1]
