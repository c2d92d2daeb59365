"""Memory that is too small: a batch is cut, its gradient stays what it was, and training goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffusion_core.training.randomness import StepRandomness
from tests.gpu.builds import Geometry, Small, build, pictures, relative, step_gradient

SHAPE = Geometry(16, (1, 2), 16, 32)


def gradient_of_a_step(device, room):
    gradient = step_gradient(build("all", device, SHAPE, network=Small))
    gradient.diffusion.model.room = room
    images, labels = pictures(512, SHAPE.side).batch(torch.arange(SHAPE.batch))
    randomness = StepRandomness.of(gradient.diffusion, SHAPE.batch, 0, 0)
    loss = gradient.attempt(gradient.compute, images.to(device), labels, randomness)
    return gradient, {"loss": loss, **{name: each.grad for name, each in gradient.diffusion.named_parameters()}}


@pytest.mark.parametrize(("room", "parts"), [(10, 4), (0.5, 32)])
def test_a_batch_that_does_not_fit_is_cut_and_gives_the_same_gradient(room, parts, device, record):
    _, whole = gradient_of_a_step(device, 10**6)
    gradient, cut = gradient_of_a_step(device, room)
    assert gradient.accumulate == parts
    assert gradient.diffusion.model.recompute == (room < 1)
    name = f"room for {room} of {SHAPE.batch} images: step in {parts} parts"
    record(name, relative(cut, whole), 1e-4, note="activations computed again" if room < 1 else "")


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("scene", ["out_of_memory", "out_of_memory_replayed"])
def test_a_gpu_that_runs_out_of_memory_trains_on_with_smaller_parts(scene, record):
    found = in_a_process(scene)
    needed = f"{found['needed'] / 2**20:.0f} MiB needed, 40% given; recordings: {found['recordings']}"
    record(f"{scene}: loss", found["loss"], 1e-3, note=needed)
    record(f"{scene}: parts of a batch", found["parts"], 2, least=True)
    if scene == "out_of_memory_replayed":
        record(f"{scene}: recorded steps", found["recordings"], 1, least=True)


@pytest.mark.usefixtures("graphs")
def test_a_step_that_cannot_be_recorded_leaves_the_gpu_fit_for_training(record):
    found = in_a_process("unrecordable")
    assert found["refused"], found["verdict"]
    record("a step that cannot be recorded: loss", found["loss"], 1e-3, note=found["verdict"][:100])
    record("a step that cannot be recorded: free memory can be given back", not found["problem"], 1, least=True)
    record("a step that cannot be recorded: MiB kept for it", found["kept"] / 2**20, 8)
    record("a step that cannot be recorded: the stream is what it was", found["stream"], 1, least=True)


def in_a_process(scene):
    """Return what a scene of `child.py` measured."""
    command = [sys.executable, "-m", "tests.gpu.child", scene]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])
