"""The loss of each image is that of denoising-diffusion-pytorch."""

from unittest import mock

import pytest
import torch

from diffusion_core import LearnedGaussianDiffusion
from diffusion_core.process.weightings import Uniform
from tests.conformance import cases
from tests.conformance.golden import GOLDEN, PROCESSES, TOLERANCE, assert_equal, key, process
from tests.conformance.test_process import weigh

# 1.4.6 has no weights but p2's, so that its l1 loss without them is compared with ours without any.
LOSSES = {weighting: weigh(weighting) for weighting in cases.WEIGHTINGS} | {
    "l1": {"loss": "l1", **weigh("p2")},
}


def given(dtype):
    dtype = cases.DTYPES[dtype]
    return cases.x0(dtype), cases.times(), cases.numbers("noise", cases.SHAPE, dtype)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("weighting", LOSSES)
@pytest.mark.parametrize(("schedule", "objective", "self_condition"), PROCESSES)
def test_the_loss_at_given_noise(schedule, objective, self_condition, weighting, dtype):
    network = cases.Waves(self_condition)
    diffusion = process(dtype, network, objective=objective, beta_schedule=schedule, **LOSSES[weighting])
    x0, t, noise = given(dtype)
    seen = []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    losses = diffusion.p_losses(x0, t, noise, loss_reduction="none")
    name = f"{key(schedule, objective, self_condition, dtype)}/{weighting}"
    expected = GOLDEN[f"{name}/alone"]
    if self_condition:
        # The package flips a coin for the whole batch; here half of the images get their guess.
        guess = seen[-1][2].flatten(1).abs().sum(1) > 0
        assert int(guess.sum()) == len(x0) // 2
        expected = torch.where(guess, GOLDEN[f"{name}/guided"], expected)
        assert not torch.allclose(GOLDEN[f"{name}/guided"], GOLDEN[f"{name}/alone"], rtol=1e-3)
    torch.testing.assert_close(losses, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    torch.manual_seed(0)
    mean = diffusion.p_losses(x0, t, noise)
    torch.manual_seed(0)
    torch.testing.assert_close(mean, diffusion.p_losses(x0, t, noise, loss_reduction="none").mean())


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_offset_noise(dtype):
    x0, t, noise = given(dtype)
    diffusion = process(dtype, offset_noise_strength=cases.OFFSET_STRENGTH)
    offsets = cases.replay("offset", cases.SHAPE[:2], cases.DTYPES[dtype])
    with mock.patch.object(torch, "randn", side_effect=lambda *_, **__: next(offsets)[:, :, None, None]):
        losses = diffusion.p_losses(x0, t, noise, loss_reduction="none")
    assert_equal(losses, f"offset/{dtype}", dtype)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_the_assignment_of_immiscible_noise(dtype):
    x0, _, noise = given(dtype)
    assert torch.equal(process(dtype).noise_assignment(x0, noise), GOLDEN[f"assignment/{dtype}"])


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_learned_variance(dtype):
    network = cases.Waves(outputs=2)
    diffusion = process(dtype, network, kind=LearnedGaussianDiffusion, objective="pred_noise", weighting=Uniform())
    x0, t, noise = given(dtype)
    losses = diffusion.p_losses(x0, t, noise, loss_reduction="none")
    assert_equal(losses, f"learned/{dtype}/loss", dtype)
    x_t = cases.numbers("x_t", cases.SHAPE, cases.DTYPES[dtype])
    for name, value in zip(
        ("mean", "variance", "log_variance", "x0"), diffusion.p_mean_variance(x_t, t, None, True), strict=True
    ):
        assert_equal(value, f"learned/{dtype}/{name}", dtype)


def test_a_loss_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="loss_reduction is 'sum'; it must be mean or none"):
        process("float32").p_losses(*given("float32"), loss_reduction="sum")
    with pytest.raises(ValueError, match="loss is 'l3'; it must be one of huber, l1, l2"):
        process("float32", loss="l3")
