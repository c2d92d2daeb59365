import pytest
import torch

from diffusion_core import DDIM, GaussianDiffusion
from diffusion_core.samplers.loop import Trajectory
from tests.conftest import Network, constant
from tests.samplers.every import every_sampler

OPTIONS = {"image_size": 4, "zero_terminal_snr": True, "weighting": "uniform"}


def test_nothing_of_the_image_is_left_at_the_last_timestep():
    diffusion = GaussianDiffusion(constant(0.0), **OPTIONS)
    x0, noise, last = torch.rand(2, 1, 4, 4), torch.randn(2, 1, 4, 4), torch.tensor([999, 999])
    assert torch.equal(diffusion.q_sample(x0, last, noise), noise)
    # And what is predicted from there is finite and right: v is -x0.
    v = diffusion.predict_v(x0, last, noise)
    torch.testing.assert_close(v, -x0)
    torch.testing.assert_close(diffusion.predict_start_from_v(noise, last, v), x0)
    torch.testing.assert_close(diffusion.predict_noise_from_start(noise, last, x0), noise)


@pytest.mark.parametrize("objective", ["pred_v", "pred_x0"])
@pytest.mark.parametrize("sampler", [*every_sampler(20), DDIM(steps=20, eta=1.0)], ids=str)
def test_every_sampler_starts_from_pure_noise_and_finds_the_mean_brightness(objective, sampler):
    """Data of one grey level; a network asked anywhere with too clean an x_t for its t would answer another one."""
    asked = []

    def best(x, t, _):
        asked.append(float(t[0]))
        x0 = torch.full_like(x, 0.8)
        at = diffusion.schedule.at(t, x)
        noise = (x - at.sqrt_alpha_bar * x0) / at.sqrt_one_minus_alpha_bar
        return x0 if objective == "pred_x0" else at.sqrt_alpha_bar * noise - at.sqrt_one_minus_alpha_bar * x0

    diffusion = GaussianDiffusion(Network(best), objective=objective, auto_normalize=False, **OPTIONS).double()
    images = diffusion.sample(3, sampler=sampler)
    torch.testing.assert_close(images, torch.full_like(images, 0.8))
    # Heun begins at its own greatest noise level, which lies before.
    assert asked[0] == 999 or (sampler.kind == "heun" and 990 < asked[0] < 999)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("spacing", ["linspace", "trailing", "quadratic"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_no_number_of_steps_trips_over_the_rounding_at_pure_noise(schedule, spacing, eta):
    diffusion = GaussianDiffusion(constant(0.3), beta_schedule=schedule, timesteps=60, **OPTIONS)
    x = torch.zeros(1, 1, 4, 4)
    for steps in range(1, 61):
        sampler = DDIM(steps=steps, eta=eta, spacing=spacing)
        t, t_next = sampler.transitions(diffusion.schedule)[0]
        step = sampler.step(diffusion.schedule, Trajectory(diffusion.denoiser, None), x, t, t_next, torch.ones_like)
        assert bool(torch.isfinite(step).all())


def test_the_loss_is_finite_and_has_a_gradient_at_every_timestep():
    scale = torch.ones((), requires_grad=True)
    diffusion = GaussianDiffusion(Network(lambda x, t, _: x * scale), **OPTIONS)
    loss = diffusion.p_losses(torch.rand(1000, 1, 4, 4), torch.arange(1000), loss_reduction="none")
    assert bool(torch.isfinite(loss).all())
    loss[-1].backward()
    assert float(scale.grad) != 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "pred_noise"}, "objective is 'pred_noise'; with zero_terminal_snr it must be pred_v or pred_x0"),
        ({"weighting": "snr"}, "the weighting snr, which gives weight 0 to the last timestep.*uniform or p2"),
        ({"weighting": None, "min_snr_loss_weight": True}, "the weighting min_snr, which gives weight 0"),
    ],
)
def test_what_would_leave_the_last_timestep_untrained_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GaussianDiffusion(constant(0.0), **{**OPTIONS, **options})
