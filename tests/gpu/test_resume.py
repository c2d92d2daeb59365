"""A training that stops and goes on from its tensors is the one that never stopped."""

from copy import deepcopy

import pytest

from diffusion_core import Trainer
from tests.gpu.builds import Geometry, build, geometry, pictures, relative, replaying

STEPS, STOP = 12, 5
SMALL = Geometry(16, (1, 2), 16, 32)


def trainer(device, shape, replayed=False, dropout=0.0, **options):
    diffusion = build("all", device, shape, dropout=dropout)
    options = {"batch_size": shape.batch, "warmup_images": 8 * shape.batch, "horizontal_flip": True, **options}
    made = Trainer(diffusion, pictures(512, shape.side), images=STEPS * shape.batch, **options)
    return replaying(made) if replayed else made


def tensors(trained):
    """Return a checkpoint's tensors, on the host as in a file."""
    return {
        part: {name: each.cpu().clone() for name, each in named.items()} for part, named in trained.tensors().items()
    }


def unbroken(*options, **more):
    trained = trainer(*options, **more)
    assert len(list(trained.steps())) == STEPS
    return trained, tensors(trained)


def resumed(*options, **more):
    first = trainer(*options, **more)
    for report in first.steps():
        if report.step == STOP:
            break
    saved = tensors(first)
    trained = trainer(*options, **more)
    trained.restore(STOP, deepcopy(saved))
    assert len(list(trained.steps())) == STEPS - STOP
    return tensors(trained)


def compare(record, way, *options, **more):
    trained, whole = unbroken(*options, **more)
    _, again = unbroken(*options, **more)
    broken = resumed(*options, **more)
    assert all(verdict.passed for verdict in trained.verdicts)
    # What a device that is not deterministic makes of the same training twice.
    spread = max(relative(again[part], whole[part]) for part in whole)
    for part in whole:
        exact = "to be equal: so are two whole trainings" if spread == 0.0 else f"two whole trainings: {spread:.2g}"
        limit = 0.0 if spread == 0.0 else min(max(1e-4, 3.0 * spread), 1e-2)
        record(f"resumed, {way}: {part}", relative(broken[part], whole[part]), limit, note=exact)


def test_a_resumed_training_equals_an_unbroken_one(device, record):
    compare(record, "eager, dropout", device, SMALL, dropout=0.2, precision="float32")


@pytest.mark.usefixtures("graphs")
def test_a_resumed_training_of_replayed_steps_equals_an_unbroken_one(device, record):
    compare(record, "replayed, dropout", device, SMALL, replayed=True, dropout=0.2, precision="float32")


@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_a_resumed_training_as_a_gpu_runs_it_equals_an_unbroken_one(precision, device, record):
    compare(record, f"compiled, {precision}", device, geometry(device), precision=precision, compiled=True)
