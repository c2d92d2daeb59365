"""A value that is not finite reaches neither weights nor checkpoints, and is told with its images."""

import csv
import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusion_core import EMA, GaussianDiffusion, TensorData, Trainer, Unet
from diffusion_core.data.dataset import ImageDataset
from diffusion_core.errors import UserError
from diffusion_core.files import sha256_of
from diffusion_core.lineage.saved_model import load_model, save_model
from diffusion_core.registry.tracking import Run
from diffusion_core.stages import train
from diffusion_core.stages.paths import LOSS, MODELS, PREPARED
from diffusion_core.training.checkpoint import Checkpoint, load_newest
from diffusion_core.training.divergence import LEAST_STEPS, TrainingDiverged
from diffusion_core.training.optimizer import Update
from diffusion_core.training.saving import Saver
from diffusion_core.training.step import Gradient
from tests.registry.projects import write_model

COMPUTE = Gradient.compute


def trainer(steps=200, **options):
    torch.manual_seed(0)
    diffusion = GaussianDiffusion(Unet(4, dim_mults=(1,), channels=1), image_size=4)
    data = TensorData(torch.randint(0, 256, (32, 1, 4, 4), dtype=torch.uint8))
    return Trainer(diffusion, data, images=8 * steps, batch_size=8, precision="float32", **options)


def poison(monkeypatch, steps, part):
    """Make the loss or one gradient of the numbered steps not finite."""
    calls = [0]

    def compute(self, *inputs):
        loss = COMPUTE(self, *inputs)
        calls[0] += 1
        if calls[0] in steps and part == "gradient":
            self.parameters[0].grad.view(-1)[0] = math.inf
        return loss * math.nan if calls[0] in steps and part == "loss" else loss

    monkeypatch.setattr(Gradient, "compute", compute)


def tolerant(settings):
    """Let a training of ten steps skip some of them."""
    return settings.model_copy(update={"max_skipped_share": 0.5})


@pytest.mark.parametrize("part", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_neither_weights_nor_average(monkeypatch, part):
    poison(monkeypatch, {3}, part)
    trained, states = trainer(), []
    for report in trained.steps():
        states.append({name: each.clone() for name, each in (*trained.diffusion.named_parameters(),)})
        states[-1] |= {f"ema.{name}": each.clone() for name, each in trained.ema.module.named_parameters()}
        assert bool(report.skipped) == (report.step == 3)
        if report.step == 4:
            break
    assert all(torch.equal(states[1][name], states[2][name]) for name in states[1])
    assert not all(torch.equal(states[2][name], states[3][name]) for name in states[2])
    assert int(trained.update.skipped_steps) == 1


@pytest.mark.parametrize(
    ("steps", "share", "skipped"),
    [(50, 0.05, 3), (200, 0.05, 11), (200, 0.49, 99), (LEAST_STEPS, 0.05, 51), (10 * LEAST_STEPS, 0.05, 51)],
)
def test_more_skipped_steps_than_their_share_stop_a_training(monkeypatch, steps, share, skipped):
    """A long training stops at once, and a short one has no more of them than its own length allows."""
    poison(monkeypatch, set(range(2, steps, 2)), "loss")
    message = rf"of {skipped} of {2 * skipped} steps was not finite, and train.max_skipped_share is {share}"
    with pytest.raises(TrainingDiverged, match=message):
        list(trainer(steps, max_skipped_share=share).steps())


def test_as_many_skipped_steps_as_their_share_stop_no_training(monkeypatch):
    """The control."""
    poison(monkeypatch, set(range(2, 201, 2)), "loss")
    assert len(list(trainer(max_skipped_share=0.5).steps())) == 200


def test_nine_skipped_steps_of_ten_stop_a_short_training(monkeypatch):
    """Ten in a row never come."""
    poison(monkeypatch, {step for step in range(1, 51) if step % 10}, "gradient")
    with pytest.raises(TrainingDiverged, match="of 3 of 3 steps was not finite"):
        list(trainer(50).steps())
    # The control: no share is too large.
    poison(monkeypatch, {step for step in range(1, 51) if step % 10}, "gradient")
    assert len(list(trainer(50, max_skipped_share=1.0).steps())) == 50


def test_a_state_that_is_not_finite_is_no_checkpoint(tmp_path):
    trained = trainer()
    next(trained.steps())
    with Saver(tmp_path) as saver:
        saver.save(Checkpoint(1, trained.tensors(), {}))
        with torch.no_grad():
            next(trained.diffusion.parameters())[0] = math.nan
        saver.save(Checkpoint(2, trained.tensors(), {}))
        message = "the weights after step 2 are not finite: lower train.learning_rate"
        with pytest.raises(TrainingDiverged, match=message):
            saver.wait()
    assert load_newest(tmp_path).step == 1


def test_the_optimizer_without_the_loss_would_apply_its_gradient():
    """The control: a finite gradient of a loss that is not finite."""
    diffusion = GaussianDiffusion(Unet(4, dim_mults=(1,), channels=1), image_size=4)
    options = {"learning_rate": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.0, "max_grad_norm": 1.0}
    update = Update(diffusion, EMA(diffusion, 100.0), **options)
    for each in update.parameters:
        each.grad = torch.ones_like(each)
    before = [each.clone() for each in update.parameters]
    scalars = torch.tensor([0.1, 0.5])
    assert float(update.step(*scalars, torch.tensor(math.nan))[1]) == 1.0
    assert all(torch.equal(*pair) for pair in zip(before, update.parameters, strict=True))
    assert float(update.step(*scalars, torch.tensor(1.0))[1]) == 0.0
    assert not any(torch.equal(*pair) for pair in zip(before, update.parameters, strict=True))


def test_skipped_steps_are_counted_logged_and_told_with_their_images(project, environment, monkeypatch, caplog):
    poison(monkeypatch, {2}, "loss")
    train.run(tolerant(project.train), environment)
    with LOSS.open(encoding="utf-8") as file:
        assert [row["skipped"] for row in csv.DictReader(file)] == ["1", "0", "0", "0", "0"]
    (warning,) = [record.getMessage() for record in caplog.records if "was skipped" in record.getMessage()]
    assert warning.startswith("step 2 was skipped, because its loss or gradient is not finite; its images: ")
    assert warning.endswith(" and 27 more")
    named = warning.partition("images: ")[2].removesuffix(" and 27 more").split(", ")
    dataset = ImageDataset.open(PREPARED, "train")
    assert set(named) <= set(dataset.sources(torch.arange(len(dataset)).numpy()))


def test_poisoned_weights_keep_the_last_good_checkpoint(project, environment, monkeypatch):
    steps = Trainer.steps

    def poisoned(self):
        for report in steps(self):
            yield report
            if report.step == 6:
                with torch.no_grad():
                    next(self.diffusion.parameters())[0] = math.nan

    often = environment.model_copy(update={"checkpoint_seconds": 0.0})
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "steps", poisoned)
        with pytest.raises(UserError, match="the weights after step 7 are not finite"):
            train.run(tolerant(project.train), often)
    assert not (MODELS / "model.safetensors").exists()
    (folder,) = [path.parent for path in environment.checkpoints.glob("*/identity.json")]
    assert load_newest(folder).step == 6
    train.run(tolerant(project.train), environment)
    load_model(MODELS)


def test_a_model_that_is_not_finite_is_refused_at_every_door(tmp_path):
    write_model(tmp_path)
    diffusion = load_model(tmp_path).diffusion
    weights = load_file(tmp_path / "model.safetensors")
    name = next(iter(weights))
    weights[name].view(-1)[0] = math.inf
    save_file(weights, tmp_path / "model.safetensors")
    # As one would write it who trained such a model, and not as a byte that flipped.
    described = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    described["weights_sha256"] = sha256_of(tmp_path / "model.safetensors")
    (tmp_path / "model.json").write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(UserError, match=rf"cannot be loaded \({name} has values that are not finite\)"):
        load_model(tmp_path)
    with torch.no_grad():
        next(diffusion.model.parameters())[0] = math.nan
    with pytest.raises(ValueError, match="has values that are not finite"):
        save_model(tmp_path, diffusion, {}, {}, {})


def test_a_checkpoint_that_knows_skipped_steps_is_saved_after_their_report(project, environment, monkeypatch):
    """A resumed training would not report them again."""
    poison(monkeypatch, {2}, "loss")
    told = []
    monkeypatch.setattr(Run, "text", lambda _, content, file: told.append(file))
    save = Saver.save

    def dies(self, checkpoint):
        save(self, checkpoint)
        if checkpoint.state["history"]["skipped"]:
            raise KeyboardInterrupt

    monkeypatch.setattr(Saver, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        train.run(tolerant(project.train), environment.model_copy(update={"checkpoint_seconds": 0.0}))
    assert told == ["data.html", "skipped/step-000000002.txt"]
