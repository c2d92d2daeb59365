import pytest
import torch

from diffusion_core import GaussianDiffusion
from diffusion_core.choices import choices
from diffusion_core.process.losses import L1, L2, Huber, LossChoice
from tests.conftest import constant

ERRORS = torch.tensor([-3.0, -0.5, 0.0, 0.25, 2.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (L2(), [9.0, 0.25, 0.0, 0.0625, 4.0]),
        (L1(), [3.0, 0.5, 0.0, 0.25, 2.0]),
        (Huber(delta=1.0), [2.5, 0.125, 0.0, 0.03125, 1.5]),
        (Huber(delta=2.5), [4.375, 0.125, 0.0, 0.03125, 2.0]),
    ],
    ids=str,
)
def test_losses_are_their_formulas(loss, expected):
    target = torch.randn(5, dtype=torch.float64)
    torch.testing.assert_close(loss(target + ERRORS, target), torch.tensor(expected, dtype=torch.float64))


def test_the_chosen_loss_is_what_is_averaged_and_weighted():
    x0, noise = torch.rand(2, 3, 1, 4, 4, dtype=torch.float64)
    t = torch.tensor([3, 500, 900])
    for kind in choices(LossChoice):
        diffusion = GaussianDiffusion(constant(0.2), image_size=4, objective="pred_x0", loss=kind).double()
        elements = choices(LossChoice)[kind]()(torch.full_like(x0, 0.2), x0)
        expected = elements.flatten(1).mean(1) * diffusion.snr[t]
        torch.testing.assert_close(diffusion.p_losses(x0, t, noise, loss_reduction="none"), expected)


def test_options_outside_their_range_are_named():
    with pytest.raises(ValueError, match=r"delta is 0.0; the Huber loss needs a value greater than 0"):
        Huber(delta=0.0)
