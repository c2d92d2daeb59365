"""What a device computes rightly passes, and the check changes nothing of what is trained."""

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from diffusion_core import GaussianDiffusion, LearnedGaussianDiffusion, Unet
from diffusion_core.self_check import training as self_check
from tests.self_check.trainings import build, compiler, finished, is_compiled


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


def test_the_check_changes_nothing_of_what_is_trained(needs_bfloat16):
    checked, unchecked = build(False, 0.2, "bfloat16"), build(False, 0.2, "bfloat16")
    unchecked._check = lambda *batch: None
    ours, theirs = finished(checked), finished(unchecked)
    assert checked.verdicts
    assert ours[0] == theirs[0]
    assert all(torch.equal(one, other) for one, other in zip(ours[1], theirs[1], strict=True))


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
    trainer.ways.check(*trainer.data.batch(torch.arange(8)), trainer._randomness())
    assert [verdict.passed for verdict in trainer.verdicts] == [True, True]
    assert trainer.gradient.accumulate == 4


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
