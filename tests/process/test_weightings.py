import pytest
import torch

from diffusion_core.process.noise_schedule import NoiseSchedule
from diffusion_core.process.objectives import OBJECTIVES, Coefficients
from diffusion_core.process.schedules import Cosine, Linear, Sigmoid
from diffusion_core.process.weightings import P2, SNR, MinSNR


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_error_ratio_is_the_objectives_squared_error_in_units_of_x0s(objective):
    """Two guesses of x0 at the same x_t differ, in the objective's own space, by sqrt(ratio) times as much."""
    torch.manual_seed(1)
    for alpha_bar in torch.rand(20, dtype=torch.float64):
        at = Coefficients(alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), (1 / alpha_bar).sqrt(), (1 / alpha_bar - 1).sqrt())
        x_t, one, other = torch.randn(3, 7, dtype=torch.float64)

        def output(x0, x_t=x_t, at=at):
            noise = (x_t - at.sqrt_alpha_bar * x0) / at.sqrt_one_minus_alpha_bar
            return objective.target(x0, noise, at)

        own = (output(one) - output(other)).square().sum()
        ratio = objective.error_ratio((alpha_bar / (1 - alpha_bar))[None])[0]
        torch.testing.assert_close(own, ratio * (one - other).square().sum(), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize(
    ("schedule", "x0_mean", "v_mean"),
    [(Linear(), 31, 0.28), (Cosine(), 86, 0.50), (Sigmoid(), 19, 0.50)],
    ids=lambda each: getattr(each, "kind", ""),
)
def test_mean_weights_of_the_three_objectives(schedule, x0_mean, v_mean):
    snr = NoiseSchedule(schedule, 1000).double().snr
    weights = {name: SNR()(snr, objective.error_ratio(snr)) for name, objective in OBJECTIVES.items()}
    assert torch.equal(weights["pred_noise"], torch.ones_like(snr))
    assert float(weights["pred_x0"].mean()) == pytest.approx(x0_mean, rel=0.02)
    assert float(weights["pred_v"].mean()) == pytest.approx(v_mean, rel=0.02)


def test_min_snr_caps_the_weight_of_x0_for_every_objective():
    snr = torch.logspace(-4, 4, 50, dtype=torch.float64)
    for objective in OBJECTIVES.values():
        ratio = objective.error_ratio(snr)
        torch.testing.assert_close(MinSNR(gamma=5.0)(snr, ratio) * ratio, snr.clamp(max=5.0))


def test_p2_weighs_every_timestep_alike_at_gamma_zero_and_falls_with_snr_above_it():
    snr = torch.logspace(-4, 4, 50, dtype=torch.float64)
    assert torch.equal(P2(gamma=0.0)(snr, snr), torch.ones_like(snr))
    assert bool((P2(gamma=1.0)(snr, snr).diff() < 0).all())
    torch.testing.assert_close(P2(gamma=0.5, k=2.0)(snr, snr), 1 / (2.0 + snr).sqrt())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MinSNR(gamma=0.0), "gamma is 0.0"),
        (lambda: P2(gamma=-1.0), "gamma is -1.0"),
        (lambda: P2(k=0.0), "k is 0.0"),
    ],
)
def test_weightings_refuse_options_outside_their_range(build, message):
    with pytest.raises(ValueError, match=message):
        build()
