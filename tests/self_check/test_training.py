"""What a device computes wrongly is noticed before the first step, and training goes on without it."""

import logging
from copy import deepcopy
from itertools import combinations

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd

from diffusion_core.runtime.compilation import compile_for_sampling
from diffusion_core.self_check import training as self_check
from diffusion_core.self_check.comparison import TOLERANCE, compare, judge_precision
from diffusion_core.self_check.sampling import check_sampling
from diffusion_core.training.step import OutOfMemory
from tests.self_check.trainings import build, compiler, finished, is_compiled, right


def scaled(gradients):
    return [None if each is None else each * 1.5 if each.ndim == 4 else each for each in gradients]


def swapped(gradients):
    """Gradients of two parameters of one shape, each in the other's place."""
    gradients = list(gradients)
    kernels = [i for i, each in enumerate(gradients) if each is not None and each.ndim == 4]
    pairs = [(i, j) for i, j in combinations(kernels, 2) if gradients[i].shape == gradients[j].shape]
    for i, j in pairs[:1]:
        gradients[i], gradients[j] = gradients[j], gradients[i]
    return gradients


def transposed(gradients):
    return [
        each.transpose(2, 3).contiguous(memory_format=torch.channels_last)
        if each is not None and each.ndim == 4 and each.shape[-1] == 3
        else each
        for each in gradients
    ]


def lost(gradients):
    """What Inductor's mix-order reduction does: a gradient of one dimension that is never written."""
    return [each * 0.0 if each is not None and each.ndim == 1 else each for each in gradients]


def missing(gradients):
    """What autocast's cache did to weights (PyTorch issue 158232): they get no gradient at all."""
    return [None if each is not None and each.ndim == 1 else each for each in gradients]


@pytest.mark.parametrize(
    ("fault", "precision"),
    [
        (scaled, "float32"),
        (swapped, "float32"),
        (transposed, "float32"),
        (lost, "float32"),
        (missing, "float32"),
        (scaled, "bfloat16"),
    ],
)
def test_a_planted_miscompilation_is_caught_and_training_goes_on_eager(fault, precision, by, caplog, needs_bfloat16):
    by(compiler(backward=fault))
    trainer = build(precision=precision)
    assert is_compiled(trainer)
    ours = finished(trainer)
    assert not is_compiled(trainer)
    assert [verdict.passed for verdict in trainer.verdicts] == [True, False]
    assert trainer.verdicts[-1].worst.startswith("the gradient of model.")
    assert trainer.verdicts[-1].error > trainer.verdicts[-1].allowed
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert trainer.verdicts[-1].worst in warning
    assert "training continues in a slower way" in warning
    by(compiler())
    theirs = finished(build(compiled=False, precision=precision))
    assert ours[0] == theirs[0]
    assert all(torch.equal(one, other) for one, other in zip(ours[1], theirs[1], strict=True))


def test_the_parameter_whose_gradient_is_wrong_is_named(by):
    def fault(gradients):
        # Output convolutions of attention alone have this shape.
        return [each * 3.0 if each is not None and each.shape == (8, 128, 1, 1) else each for each in gradients]

    by(compiler(backward=fault))
    trainer = build()
    next(trainer.steps())
    assert "to_out.weight" in trainer.verdicts[-1].worst


def test_a_precision_that_loses_gradients_is_no_precision():
    true = {"the loss": torch.tensor(1.0), "the gradient of w": torch.ones(4), "the gradient of b": torch.ones(9)}
    assert judge_precision("", true, true).passed
    assert not judge_precision("", true, {**true, "the gradient of b": torch.zeros(9)}).passed


def test_an_output_that_is_wrong_is_caught(by):
    by(compiler(forward=lambda results: [results[0] * 1.1, *results[1:]]))
    trainer = build()
    next(trainer.steps())
    assert not trainer.verdicts[-1].passed


def test_a_compiler_that_fails_is_told_and_training_goes_on_eager(by, caplog):
    def fails(graph, _):
        raise RuntimeError("no room left on the device for kernels")

    by(aot_autograd(fw_compiler=fails, bw_compiler=fails))
    trainer = build()
    ours = finished(trainer)
    assert "cannot run" in str(trainer.verdicts[-1])
    assert "no room left on the device for kernels" in caplog.text
    by(compiler())
    assert ours[0] == finished(build(compiled=False))[0]


def test_a_precision_that_computes_nonsense_is_left_for_float32(caplog, needs_bfloat16):
    trainer = build(False, precision="bfloat16")
    network = trainer.diffusion.model.init_conv
    network.register_forward_hook(lambda _, __, output: output.roll(1, 1) if output.dtype == torch.bfloat16 else output)
    ours = finished(trainer)
    assert [verdict.passed for verdict in trainer.verdicts] == [False]
    assert trainer.precision.dtype == torch.float32
    assert ours[0] == finished(build(False))[0]


def test_memory_for_not_even_a_comparison_is_reported_and_training_goes_on_eager(by, monkeypatch, caplog):
    by(compiler())

    def fails(*_):
        raise OutOfMemory("the device's memory is too small")

    monkeypatch.setattr(self_check, "_plain_steps", fails)
    trainer = build()
    finished(trainer)
    assert "not compared: the device's memory is too small; training continues in a slower way" in caplog.text
    assert not is_compiled(trainer)


def test_a_difference_counts_beside_the_one_that_the_precision_makes():
    true = {"the loss": torch.tensor(1.0), "the gradient of w": torch.ones(100)}
    rough = {"the loss": torch.tensor(1.0), "the gradient of w": torch.ones(100) * 1.1}
    other = {"the loss": torch.tensor(1.0), "the gradient of w": torch.ones(100) * 0.9}
    wrong = {"the loss": torch.tensor(1.0), "the gradient of w": torch.ones(100) * 1.5}
    tolerance = TOLERANCE[torch.float32]
    assert compare("", true, rough, other, tolerance).passed
    assert not compare("", true, true, other, tolerance).passed
    assert not compare("", true, rough, wrong, tolerance).passed
    nothing = {name: torch.full_like(each, float("nan")) for name, each in true.items()}
    assert not compare("", true, rough, {**other, "the loss": nothing["the loss"]}, tolerance).passed
    assert not compare("", true, nothing, other, tolerance).passed
    assert not compare("", true, nothing, nothing, tolerance).passed
    assert not judge_precision("", true, nothing).passed


@pytest.mark.parametrize("fault", [right, lambda results: [results[0] * 1.1, *results[1:]]])
def test_sampling_is_checked_by_its_outputs(fault, by):
    by(compiler(forward=fault))
    diffusion = build(compiled=False).diffusion.eval().requires_grad_(False)
    fast = deepcopy(diffusion)
    compile_for_sampling(fast.model)
    verdict = check_sampling(diffusion, fast, torch.float32, 4)
    assert verdict.passed == (fault is right)
    assert verdict.worst == "the output"
