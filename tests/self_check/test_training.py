"""What a device computes wrongly is noticed before the first step, and training goes on without it."""

import logging
from copy import deepcopy
from itertools import combinations

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from diffusion_core import GaussianDiffusion, LearnedGaussianDiffusion, TensorData, Trainer, Unet
from diffusion_core.runtime.compilation import compile_for_sampling
from diffusion_core.self_check import training as self_check
from diffusion_core.self_check.comparison import TOLERANCE, compare, judge_precision
from diffusion_core.self_check.sampling import check_sampling
from diffusion_core.training.step import OutOfMemory

COMPILE = nn.Module.compile


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


def right(gradients):
    return list(gradients)


def compiler(backward=right, forward=right):
    """A compiler that is right but for what it does to results."""

    def made(change):
        def build(graph, _):
            return make_boxed_func(lambda *inputs: change(graph(*inputs)))

        return build

    return aot_autograd(fw_compiler=made(forward), bw_compiler=made(backward))


@pytest.fixture
def by(monkeypatch):
    """Let networks be compiled by another compiler."""

    def choose(backend):
        monkeypatch.setattr(nn.Module, "compile", lambda self, **_: COMPILE(self, backend=backend, dynamic=False))
        torch._dynamo.reset()

    yield choose
    torch._dynamo.reset()


def build(
    compiled=True,
    dropout=0.0,
    precision="float32",
    process=GaussianDiffusion,
    network=Unet,
    immiscible=False,
    **options,
):
    torch.manual_seed(1)
    network = network(8, dim_mults=(1, 2), channels=1, self_condition=True, num_classes=3, dropout=dropout, **options)
    diffusion = process(network, image_size=4, immiscible=immiscible)
    images = torch.randint(0, 256, (30, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    data = TensorData(images, torch.arange(30) % 3)
    return Trainer(diffusion, data, images=32, batch_size=8, precision=precision, compiled=compiled)


def finished(trainer):
    losses = [float(report.loss) for report in trainer.steps()]
    return losses, [each.detach().clone() for each in trainer.diffusion.parameters()]


def is_compiled(trainer):
    return any(part._compiled_call_impl is not None for part in trainer.diffusion.model.modules())


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
        # The innermost attention's output convolution is the only one of this shape.
        return [each * 3.0 if each is not None and each.shape == (16, 128, 1, 1) else each for each in gradients]

    by(compiler(backward=fault))
    trainer = build()
    next(trainer.steps())
    assert "to_out.weight" in trainer.verdicts[-1].worst


def test_a_precision_that_loses_gradients_is_no_precision():
    true = {"the loss": torch.tensor(1.0), "the gradient of w": torch.ones(4), "the gradient of b": torch.ones(9)}
    assert judge_precision("", true, true).passed
    assert not judge_precision("", true, {**true, "the gradient of b": torch.zeros(9)}).passed


def test_no_compiled_kernel_holds_the_dropout_that_the_check_leaves_out(by):
    operations = []

    def build_graph(graph, _):
        operations.extend(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph)

    by(aot_autograd(fw_compiler=build_graph, bw_compiler=build_graph))
    trainer = build(dropout=0.5)
    loss = float(next(trainer.steps()).loss)
    assert trainer.verdicts[-1].passed
    assert is_compiled(trainer)
    assert any("convolution" in each for each in operations)
    assert not [each for each in operations if "dropout" in each or "bernoulli" in each or "rand" in each]
    # And yet there is dropout: far more than rounding is between them.
    assert loss != pytest.approx(float(next(build(dropout=0.0, compiled=False).steps()).loss), rel=1e-3)


def test_an_output_that_is_wrong_is_caught(by):
    by(compiler(forward=lambda results: [results[0] * 1.1, *results[1:]]))
    trainer = build()
    next(trainer.steps())
    assert not trainer.verdicts[-1].passed


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("process", [GaussianDiffusion, LearnedGaussianDiffusion])
def test_a_right_compiler_passes_and_stays(process, precision, by, caplog, needs_bfloat16):
    by(compiler())
    trainer = build(precision=precision, process=process, learned_variance=process is LearnedGaussianDiffusion)
    finished(trainer)
    assert is_compiled(trainer)
    assert [verdict.passed for verdict in trainer.verdicts] == [True, True]
    assert "self-check" not in caplog.text


def test_dropout_does_not_look_like_a_fault(by):
    by(compiler())
    trainer = build(dropout=0.5)
    next(trainer.steps())
    assert [verdict.passed for verdict in trainer.verdicts] == [True, True]
    assert all(each.training for each in trainer.diffusion.model.modules())


@pytest.mark.parametrize("kind", [nn.Dropout2d, nn.AlphaDropout])
def test_no_other_dropout_looks_like_a_fault(kind, needs_bfloat16):
    class Dropping(Unet):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.dropped = kind(0.5)

        def forward(self, x, *others):
            return self.dropped(super().forward(x, *others))

    trainer = build(compiled=False, precision="bfloat16", network=Dropping)
    next(trainer.steps())
    assert [verdict.passed for verdict in trainer.verdicts] == [True]
    assert trainer.diffusion.model.dropped.training


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


def test_the_check_changes_nothing_of_what_is_trained(needs_bfloat16):
    checked, unchecked = build(False, 0.2, "bfloat16"), build(False, 0.2, "bfloat16")
    unchecked._check = lambda *batch: None
    ours, theirs = finished(checked), finished(unchecked)
    assert checked.verdicts
    assert ours[0] == theirs[0]
    assert all(torch.equal(one, other) for one, other in zip(ours[1], theirs[1], strict=True))


def test_a_precision_that_computes_nonsense_is_left_for_float32(caplog, needs_bfloat16):
    trainer = build(False, precision="bfloat16")
    network = trainer.diffusion.model.init_conv
    network.register_forward_hook(lambda _, __, output: output.roll(1, 1) if output.dtype == torch.bfloat16 else output)
    ours = finished(trainer)
    assert [verdict.passed for verdict in trainer.verdicts] == [False]
    assert trainer.precision.dtype == torch.float32
    assert ours[0] == finished(build(False))[0]


class Small(Unet):
    """Has memory for two images at a time where gradients are kept, but only once `tight`."""

    tight = False

    def forward(self, x, *others):
        if self.tight and torch.is_grad_enabled() and len(x) > 2:
            super().forward(x, *others)
            raise torch.OutOfMemoryError(f"tried to hold {len(x)} images")
        return super().forward(x, *others)


def test_memory_that_runs_out_while_checking_is_no_fault(by, caplog):
    by(compiler())
    trainer = build(network=Small)
    trainer.diffusion.model.tight = True
    finished(trainer)
    assert [verdict.passed for verdict in trainer.verdicts] == [True, True]
    assert is_compiled(trainer)
    assert "self-check" not in caplog.text


def test_a_training_is_cut_as_its_check_had_to_be(by):
    by(compiler())
    trainer = build(network=Small)
    trainer.diffusion.model.tight = True
    trainer._check(*trainer.data.batch(torch.arange(8)))
    assert [verdict.passed for verdict in trainer.verdicts] == [True, True]
    assert trainer.gradient.accumulate == 4


def test_memory_for_not_even_a_comparison_is_reported_and_training_goes_on_eager(by, monkeypatch, caplog):
    by(compiler())

    def fails(*_):
        raise OutOfMemory("the device's memory is too small")

    monkeypatch.setattr(self_check, "_plain_steps", fails)
    trainer = build()
    finished(trainer)
    assert "not compared: the device's memory is too small; training continues in a slower way" in caplog.text
    assert not is_compiled(trainer)


def test_immiscible_noise_does_not_look_like_a_fault(by, monkeypatch):
    """It is assigned within a part of the batch, so all ways must cut alike."""
    by(compiler())
    monkeypatch.setattr(self_check, "PIXELS_AT_A_TIME", 32)
    trainer = build(immiscible=True)
    next(trainer.steps())
    assert [verdict.passed for verdict in trainer.verdicts] == [True, True]


@pytest.mark.parametrize(("pixels", "few"), [(5 * 4 * 4, 5), (1, 4)])
def test_a_precision_alone_is_judged_by_a_few_images(pixels, few, monkeypatch, needs_bfloat16):
    """Neither memory nor time of a training's first step may grow by a whole step in float32."""
    monkeypatch.setattr(self_check, "PIXELS_OF_A_FEW", pixels)
    trainer = build(compiled=False, precision="bfloat16")
    checked, forward = [], Unet.forward

    def counting(network, x, *conditions):
        checked.append(len(x))
        return forward(network, x, *conditions)

    monkeypatch.setattr(Unet, "forward", counting)
    images, labels = trainer.data.batch(torch.arange(8))
    list(
        self_check.check_training(
            trainer.gradient, images, labels, trainer._randomness(), compiled=False, replayed=False
        )
    )
    assert max(checked) == few


def test_eager_float32_needs_no_check():
    trainer = build(compiled=False)
    next(trainer.steps())
    assert trainer.verdicts == []


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
