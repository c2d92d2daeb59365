"""The order of each solver, observed against the exact flow of a Gaussian mixture."""

import math
from itertools import pairwise

import pytest
import torch

from diffusion_core import DDIM, DDPM, DPMSolver, GaussianDiffusion, Heun
from diffusion_core.samplers.loop import Trajectory, sample_loop
from tests.conftest import Network
from tests.samplers.mixture import STD, flow, mixture

# So many that rounding a step's end to a timestep does not show.
TIMESTEPS = 2**15


@pytest.fixture(scope="module")
def diffusion():
    return mixture(TIMESTEPS, beta_schedule="linear")


@pytest.fixture(scope="module")
def x_t():
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.7


def error(diffusion, x_t, sampler, share):
    """The mean distance from the exact flow after that share of the walk."""
    transitions = sampler.transitions(diffusion.schedule)
    steps = round(len(transitions) * share)
    start, end = transitions[0][0], transitions[steps - 1][1]
    walk = list(sample_loop(diffusion.denoiser, sampler, x_t))
    exact = flow(x_t, diffusion.alpha_bar(start), diffusion.alpha_bar(end))
    return float((walk[steps - 1] - exact).abs().mean())


@pytest.mark.parametrize(
    ("sampler", "order"), [(DDIM, 1), (DPMSolver, 2)], ids=lambda each: getattr(each, "kind", str(each))
)
@pytest.mark.parametrize("share", [0.5, 0.75])
def test_the_error_falls_with_the_order_of_the_solver(diffusion, x_t, sampler, order, share):
    errors = [error(diffusion, x_t, sampler(steps=steps), share) for steps in (32, 64, 128, 256)]
    for coarse, fine in pairwise(errors[1:]):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


def test_heun_is_of_second_order_on_the_noise_levels_of_karras(diffusion, x_t):
    errors = []
    for steps in (17, 33, 65, 129):
        # Up to the last noise level; the step from there to the image is Euler's in any case.
        sampler = Heun(steps=steps, sigma_min=0.05, sigma_max=50.0)
        errors.append(error(diffusion, x_t, sampler, (steps - 1) / steps))
    for coarse, fine in pairwise(errors[1:]):
        assert math.log2(coarse / fine) == pytest.approx(2, abs=0.25)


def test_a_second_order_solver_gets_further_with_the_same_passes(diffusion, x_t):
    passes = 63
    ddim = error(diffusion, x_t, DDIM(steps=passes), 1.0)
    assert error(diffusion, x_t, DPMSolver(steps=passes, spacing="quadratic"), 1.0) < ddim / 4
    assert error(diffusion, x_t, Heun(steps=(passes + 1) // 2), 1.0) < ddim / 2


def normal_data(timesteps, schedule):
    """A process whose network knows the best guess for data from N(0, STD^2)."""

    def denoiser(x, t, _):
        alpha_bar = torch.tensor([diffusion.alpha_bar(int(step)) for step in t], dtype=x.dtype)[:, None, None, None]
        return x * alpha_bar.sqrt() * STD**2 / (alpha_bar * STD**2 + 1 - alpha_bar)

    diffusion = GaussianDiffusion(
        Network(denoiser), image_size=1, timesteps=timesteps, objective="pred_x0", beta_schedule=schedule
    ).double()
    return diffusion


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_ddpm_is_of_first_order_in_the_variance_of_its_samples(schedule):
    """For Gaussian data each step is x -> gain x + spread noise, so the variance of the samples follows exactly."""
    errors = []
    for timesteps in (250, 500, 1000):
        diffusion = normal_data(timesteps, schedule)
        denoise = Trajectory(diffusion.denoiser, None)
        half, none = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
        variance = 1.0
        # Not to the end, where a schedule's last steps are as large for any T as the noise that is left.
        for t, t_next in DDPM().transitions(diffusion.schedule)[: timesteps * 4 // 5]:
            gain = DDPM().step(diffusion.schedule, denoise, half, t, t_next, torch.zeros_like) / half
            spread = DDPM().step(diffusion.schedule, denoise, none, t, t_next, torch.ones_like)
            variance = variance * float(gain) ** 2 + float(spread) ** 2
        alpha_bar = diffusion.alpha_bar(t_next)
        errors.append(abs(variance - (alpha_bar * STD**2 + 1 - alpha_bar)))
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(1, abs=0.1)
