"""The self-check before the first step: what a device computes wrongly is not trained on."""

import torch

from diffusion_core import Trainer
from diffusion_core.networks.layers import ResnetBlock
from tests.gpu.builds import Geometry, build, pictures

STEPS = 4
SHAPE = Geometry(8, (1,), 16, 16)


class Miscompiled(ResnetBlock):
    """A block whose gradient is half as large again where it is compiled; what it returns is right."""

    def forward(self, x, time_emb, skip=None):
        output = super().forward(x, time_emb, skip)
        if torch.compiler.is_compiling():
            fixed = output.detach()
            output = fixed + 1.5 * (output - fixed)
        return output


def trainer(device, fault, compiled):
    diffusion = build("plain", "cpu", SHAPE)
    if fault:
        block = Miscompiled(SHAPE.dim, SHAPE.dim, time_emb_dim=4 * SHAPE.dim)
        block.load_state_dict(diffusion.model.mid_block2.state_dict())
        diffusion.model.mid_block2 = block
    data = pictures(512, SHAPE.side)
    options = {"batch_size": SHAPE.batch, "images": STEPS * SHAPE.batch, "compiled": compiled}
    return Trainer(diffusion.to(device), data, **options)


def losses(trained):
    return [float(report.loss) for report in trained.steps()]


def test_a_wrong_gradient_of_compiled_kernels_is_caught_and_training_goes_on_eager(device, record, caplog):
    trained = trainer(device, fault=True, compiled=True)
    ours = losses(trained)
    verdict = trained.verdicts[-1]
    assert [each.passed for each in trained.verdicts] == [True, False]
    assert "compiled" in verdict.way
    assert not verdict.problem, verdict.problem
    assert "training continues in a slower way" in caplog.text
    assert not any(part._compiled_call_impl for part in trained.diffusion.model.modules())
    record(
        "planted fault: its error, beside what is allowed",
        verdict.error,
        verdict.allowed,
        least=True,
        note=verdict.worst,
    )
    theirs = losses(trainer(device, fault=False, compiled=False))
    worst = max(abs(one / other - 1.0) for one, other in zip(ours, theirs, strict=True))
    record("planted fault: loss beside an eager training's", worst, 1e-2)


def test_kernels_that_are_right_pass_and_are_used(device, record):
    trained = trainer(device, fault=False, compiled=True)
    losses(trained)
    worst = max(trained.verdicts, key=lambda verdict: verdict.error / verdict.allowed)
    assert [each.passed for each in trained.verdicts] == [True] * (3 if device.type == "cuda" else 2), str(worst)
    assert any(part._compiled_call_impl for part in trained.diffusion.model.modules())
    record("no fault: worst error", worst.error, worst.allowed, note=f"{worst.way}: {worst.worst}")
