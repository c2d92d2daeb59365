"""AdamW, clipping, skipping and the average of the weights: from the same gradients, the CPU's weights."""

import math
from copy import deepcopy

import pytest
import torch

from diffusion_core import EMA
from diffusion_core.runtime.recording import Replayed
from diffusion_core.training.optimizer import Update
from tests.gpu.builds import Geometry, build, relative

SHAPE = Geometry(16, (1, 2), 8, 8)
STEPS = 10
# The norm of a step's gradient: half of them longer than the limit of 1; two in a row and one alone are not finite.
NORMS = [0.3, 5.0, 0.7, math.inf, math.nan, 100.0, 1e-4, math.nan, 2.0, 0.9]
LIMIT = 5e-5


def updates(process, replayed=False):
    """Take the steps; return what they changed, by part, and each step's norm and whether it was skipped."""
    update = Update(
        process, EMA(process, 100.0), learning_rate=1e-2, betas=(0.9, 0.99), weight_decay=0.01, max_grad_norm=1.0
    )
    device, source = process.device, torch.Generator().manual_seed(5)
    run = Replayed(update.step, "an update") if replayed else update.step
    for each in update.parameters:
        each.grad = torch.zeros_like(each)
    norms, skipped = [], []
    for step, norm in enumerate(NORMS):
        gradients = [torch.randn(each.shape, generator=source) for each in update.parameters]
        length = torch.stack([each.norm() for each in gradients]).norm()
        for each, value in zip(update.parameters, gradients, strict=True):
            each.grad.copy_(value * (norm if math.isfinite(norm) else 1.0) / length)
        if not math.isfinite(norm):
            update.parameters[step].grad.view(-1)[0] = norm
        # Both change from step to step, as in a training.
        scalars = torch.tensor([1e-2 * (step + 1) / STEPS, 0.5 / (step + 1)]).to(device)
        result = run(*scalars.unbind(), torch.zeros((), device=device))
        norms.append(float(result[0]))
        skipped.append(float(result[1]))
    if replayed:
        assert [*run._recordings.values()].count(None) == 0
    parts = {
        "weights": dict(process.named_parameters()),
        "average": dict(update.ema.module.named_parameters()),
        "optimizer": update.tensors(),
        "counts": update.counts(),
    }
    return parts, torch.tensor(norms, dtype=torch.float64), skipped


@pytest.fixture(scope="module")
def expected():
    return updates(build("all", "cpu", SHAPE))


def compare(record, way, ours, expected):
    for part, tensors in expected[0].items():
        named = {name: each.detach() for name, each in ours[0][part].items()}
        theirs = {name: each.detach() for name, each in tensors.items()}
        record(f"{STEPS} updates, {way}: {part}", relative(named, theirs), LIMIT)
    finite = expected[1].isfinite()
    record(f"{STEPS} updates, {way}: norms", (ours[1] / expected[1] - 1.0)[finite].abs().max(), LIMIT)
    wrong = sum(one != other for one, other in zip(ours[2], expected[2], strict=True))
    record(f"{STEPS} updates, {way}: steps wrongly skipped", wrong, 0)


def test_updates_are_the_cpus(device, record, expected):
    assert expected[2] == [float(not math.isfinite(norm)) for norm in NORMS]
    assert int(expected[0]["counts"]["most_bad_steps"]) == 2
    compare(record, "eager", updates(build("all", device, SHAPE)), expected)


@pytest.mark.usefixtures("graphs")
def test_replayed_updates_are_the_cpus(device, record, expected):
    compare(record, "replayed", updates(build("all", device, SHAPE), replayed=True), expected)


def test_a_gradient_that_is_not_finite_changes_no_weight(device, record):
    process = build("plain", device, SHAPE)
    before = deepcopy(dict(process.named_parameters()))
    update = Update(
        process, EMA(process, 100.0), learning_rate=1e-2, betas=(0.9, 0.99), weight_decay=0.01, max_grad_norm=1.0
    )
    for each in update.parameters:
        each.grad = torch.full_like(each, math.nan)
    _, skipped = update.step(*torch.tensor([1e-2, 0.5, 0.0]).to(device).unbind())
    after = {"weights": dict(process.named_parameters()), "average": dict(update.ema.module.named_parameters())}
    assert float(skipped) == 1.0
    for part, named in after.items():
        record(f"skipped update: {part}", relative(named, before), 0.0)
