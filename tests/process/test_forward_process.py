import math

import pytest
import torch

from diffusion_core import GaussianDiffusion, Unet
from tests.conftest import constant


def process(**options):
    return GaussianDiffusion(constant(0.0), image_size=4, **options)


def test_asked_for_float64_the_tables_are_the_unrounded_ones():
    stored, exact = process(), process().double()
    for name, table in exact.schedule._exact.items():
        assert torch.equal(getattr(exact.schedule, name), table)
        assert torch.equal(getattr(stored.schedule, name), table.float())
    assert not torch.equal(stored.posterior_mean_coef1.double(), exact.posterior_mean_coef1)
    again = process().double().float()
    assert torch.equal(again.betas, stored.betas)


def test_between_two_timesteps_the_logarithm_of_the_noise_level_is_interpolated():
    diffusion = process(beta_schedule="cosine").double()
    for t in (0.25, 300.5, 997.9):
        low, high = math.floor(t), math.ceil(t)
        sigmas = [math.sqrt(1 / diffusion.alpha_bar(each) - 1) for each in (low, t, high)]
        assert math.log(sigmas[1] / sigmas[0]) / math.log(sigmas[2] / sigmas[0]) == pytest.approx(t - low)
        assert diffusion.schedule.time_of_sigma(sigmas[1]) == pytest.approx(t)
        x0, noise = torch.randn(2, 1, 1, 4, 4, dtype=torch.float64)
        times = torch.tensor([t], dtype=torch.float64)
        alpha_bar = diffusion.alpha_bar(t)
        torch.testing.assert_close(
            diffusion.q_sample(x0, times, noise), math.sqrt(alpha_bar) * x0 + math.sqrt(1 - alpha_bar) * noise
        )


def test_a_whole_number_is_the_timestep_itself_whatever_its_type():
    for options in ({}, {"zero_terminal_snr": True, "weighting": "uniform"}):
        diffusion = process(**options).double()
        x0, noise = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64)
        for t in ([0, 500, 998], [0, 1, 999]):
            whole, real = torch.tensor(t), torch.tensor(t, dtype=torch.float64)
            torch.testing.assert_close(diffusion.q_sample(x0, whole, noise), diffusion.q_sample(x0, real, noise))
            assert diffusion.alpha_bar(float(t[-1])) == pytest.approx(diffusion.alpha_bar(t[-1]), abs=1e-12)


def test_noise_levels_outside_the_schedule_are_taken_to_its_ends():
    diffusion = process()
    assert diffusion.schedule.time_of_sigma(1e-9) == 0.0
    assert diffusion.schedule.time_of_sigma(1e9) == 999.0
    # There, the last timestep is noise alone, and every level lies before it.
    assert 998.0 < process(zero_terminal_snr=True, weighting="uniform").schedule.time_of_sigma(1e9) < 999.0


@pytest.mark.parametrize(("timesteps", "channels", "size"), [(4, 1, (4, 8)), (250, 2, (8, 4)), (4000, 5, (4, 4))])
def test_any_number_of_timesteps_channels_and_either_side(timesteps, channels, size):
    network = Unet(8, dim_mults=(1, 2), channels=channels, self_condition=True)
    diffusion = GaussianDiffusion(network, image_size=size, timesteps=timesteps, sampling_timesteps=3)
    diffusion(torch.rand(3, channels, *size)).backward()
    assert diffusion.sample(2).shape == (2, channels, *size)
    times = diffusion.random_times(4000)
    assert 0 <= int(times.min()) <= timesteps // 100
    assert timesteps - 1 - timesteps // 100 <= int(times.max()) < timesteps
