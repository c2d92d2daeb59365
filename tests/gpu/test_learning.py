"""A training as a device runs it learns what an eager one in float32 learns: to predict the noise of unseen images.

The images are photographs made by a formula; with CIFAR=folder, those of a folder.
"""

import os
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from benchmarks.photographs import photographs, read_folder
from diffusion_core import TensorData, Trainer
from diffusion_core.runtime.recording import Replayed
from tests.gpu.builds import KINDS, build, by_brightness, geometry

STEPS = int(os.environ.get("GPU_CHECK_STEPS", "300"))
RATE = 1e-3
TRAINED_ON, UNSEEN, TIMES = 4096, 512, 8
LIMIT = 0.03
# What the untrained network's error must have fallen to, as a share; after few steps, at all.
LEARNED = 0.5 if STEPS >= 300 else 1.0


@lru_cache
def images(side):
    """Return those to train on, and those that are not trained on."""
    folder, count = os.environ.get("CIFAR"), TRAINED_ON + UNSEEN
    both = by_brightness(read_folder(Path(folder), side, count) if folder else photographs(count, side, seed=0))
    # A folder may have fewer.
    parts = [len(both) - min(UNSEEN, len(both) // 9), min(UNSEEN, len(both) // 9)]
    return [TensorData(*each) for each in zip(both.images.split(parts), both.labels.split(parts), strict=True)]


def train(kind, device, transposed=False, **options):
    shape = geometry(device)
    diffusion = build(kind, device, shape)
    if transposed:
        for each in diffusion.parameters():
            if each.ndim == 4 and each.shape[-1] == 3:
                each.register_hook(lambda gradient: gradient.transpose(2, 3))
    options = {"batch_size": shape.batch, "images": STEPS * shape.batch, "learning_rate": RATE, "seed": 7, **options}
    trainer = Trainer(diffusion, images(shape.side)[0], **options)
    assert sum(float(report.skipped) for report in list(trainer.steps())) == 0.0
    return trainer


@torch.no_grad()
def noise_error(kind, device, state):
    """Return the mean squared error of the noise that a network with these weights predicts, eager in float32.

    The images, noise and timesteps are the same for all.
    """
    shape = geometry(device)
    diffusion = build(kind, device, shape).eval()
    diffusion.model.load_state_dict(state)
    unseen = images(shape.side)[1]
    x_start = diffusion.normalize(unseen.images.to(device).float() / 255.0)
    classes = None if diffusion.num_classes is None else unseen.labels.to(device)
    source = torch.Generator().manual_seed(9)
    errors = []
    for index in range(TIMES):
        noise = torch.randn(x_start.shape, generator=source).to(device)
        times = torch.full((len(unseen),), int((index + 0.5) / TIMES * diffusion.num_timesteps), device=device)
        x_t = diffusion.q_sample(x_start, times, noise)
        estimate = None
        if diffusion.self_condition:
            estimate = diffusion.model_predictions(x_t, times, classes=classes).pred_x_start
        predicted = diffusion.model_predictions(x_t, times, estimate, classes=classes).pred_noise
        errors.append(float((predicted - noise).square().mean()))
    return sum(errors) / TIMES


def errors(kind, device, trainer):
    """Return the error with the weights and with their average."""
    weights = {"weights": trainer.diffusion, "average": trainer.ema.module}
    return {part: noise_error(kind, device, each.model.state_dict()) for part, each in weights.items()}


@lru_cache
def eager_float32(kind, device):
    return errors(kind, device, train(kind, device, precision="float32"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_learns_what_eager_float32_learns(kind, device, record):
    # With PyTorch's own settings, as users have them.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        trained = train(kind, device, compiled=True)
    assert all(verdict.passed for verdict in trained.verdicts), [str(verdict) for verdict in trained.verdicts]
    if device.type == "cuda":
        assert isinstance(trained._run, Replayed)
        assert [each is None for each in trained._run._recordings.values()] == [False]
    untrained = noise_error(kind, device, build(kind, device, geometry(device)).model.state_dict())
    ours, theirs = errors(kind, device, trained), eager_float32(kind, device)
    for part, error in ours.items():
        # One side alone: rounding makes some trainings better, and wrong gradients make them worse.
        note = f"{error:.4f}, eager float32 {theirs[part]:.4f}, untrained {untrained:.4f}; {trained.precision.dtype}"
        record(f"learning, {kind}: {part}, beside eager float32", error / theirs[part] - 1.0, LIMIT, note=note)
        record(f"learning, {kind}: {part}, beside none", error / untrained, LEARNED)


@pytest.mark.skipif(STEPS < 300, reason="after a few steps nothing is learned that could be missed")
def test_a_training_with_wrong_gradients_is_beyond_the_limit(device, record):
    """The control: eager float32 whose kernels of 3x3 pixels have their gradients transposed."""
    wrong = errors("plain", device, train("plain", device, transposed=True, precision="float32"))
    for part, right in eager_float32("plain", device).items():
        record(f"wrong gradients: {part}, beside right ones", wrong[part] / right - 1.0, LIMIT, least=True)
