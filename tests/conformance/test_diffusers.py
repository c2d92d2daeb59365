"""Each sampler takes the steps of the scheduler that diffusers has for it, given the same schedule and guesses.

diffusers multiplies its abar up in float32, which drifts; it is given ours.
"""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from diffusion_core import DDIM, DDPM, DPMSolver, Heun
from diffusion_core.samplers.loop import Trajectory, sample_loop
from tests.conformance import cases
from tests.conformance.golden import process

SHAPE = cases.WALK_SHAPE
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}


class Guesses(cases.Waves):
    """Guesses x0 within [-1, 1], so that clipping changes nothing."""

    def forward(self, x, time, x_self_cond=None):
        return 0.9 * super().forward(x, time, x_self_cond)


@pytest.fixture(params=cases.SCHEDULES)
def diffusion(request):
    return process("float64", Guesses(), objective="pred_x0", beta_schedule=request.param)


def scheduler(kind, diffusion, **options):
    made = kind(trained_betas=diffusion.betas.numpy(), prediction_type="sample", **options)
    made.alphas_cumprod = diffusion.alphas_cumprod.clone()
    if hasattr(made, "final_alpha_cumprod"):
        made.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    return made


def guess(diffusion, x, t):
    return diffusion.model_predictions(x, torch.full((len(x),), t, dtype=torch.as_tensor(t).dtype)).pred_x_start


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("spacing", "steps"), [("trailing", 50), ("trailing", 30), ("leading", 50), ("linspace", 40)])
def test_ddim(diffusion, spacing, steps, eta):
    theirs = scheduler(DDIMScheduler, diffusion, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=True)
    # For its equal strides alone; where there are none, each step is asked for with its own.
    theirs.set_timesteps(steps)
    sampler = DDIM(steps=steps, eta=eta, spacing=spacing)
    noises = cases.replay("ddim", SHAPE, torch.float64)
    x = next(noises)
    walk = sample_loop(diffusion.denoiser, sampler, x, randn=lambda like: next(noises))
    again = cases.replay("ddim", SHAPE, torch.float64)
    next(again)
    for (t, t_next), ours in zip(sampler.transitions(diffusion.schedule), walk, strict=True):
        # diffusers finds the timestep after this one as t - T // S.
        theirs.num_inference_steps = 1
        theirs.config.num_train_timesteps = t - t_next
        added = next(again) if eta > 0 and t_next >= 0 else torch.zeros(SHAPE, dtype=torch.float64)
        x = theirs.step(
            guess(diffusion, x, t), t, x, eta=eta, use_clipped_model_output=True, variance_noise=added
        ).prev_sample
        torch.testing.assert_close(ours, x, **TOLERANCE)
        theirs.config.num_train_timesteps = 1000


def test_ddpm(diffusion):
    theirs = scheduler(DDPMScheduler, diffusion, variance_type="fixed_small", clip_sample=True)
    x = cases.numbers("x_t", SHAPE)
    denoise = Trajectory(diffusion.denoiser, None)
    for t in (999, 998, 500, 250, 10, 1, 0):
        noise = cases.numbers(f"noise {t}", SHAPE)
        # diffusers draws its noise itself.
        torch.manual_seed(t)
        expected = theirs.step(guess(diffusion, x, t), t, x, generator=None).prev_sample
        torch.manual_seed(t)
        noise = torch.randn(SHAPE, dtype=torch.float64)
        ours = DDPM().step(diffusion.schedule, denoise, x, t, t - 1, lambda like, noise=noise: noise)
        torch.testing.assert_close(ours, expected, **TOLERANCE)
        x = expected


@pytest.mark.parametrize(("spacing", "steps"), [("linspace", 20), ("trailing", 8), ("quadratic", 15), ("linspace", 1)])
def test_dpm_solver(diffusion, spacing, steps):
    theirs = scheduler(
        DPMSolverMultistepScheduler, diffusion, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"
    )
    sampler = DPMSolver(steps=steps, spacing=spacing)
    times = [t for t, _ in sampler.transitions(diffusion.schedule)]
    theirs.set_timesteps(timesteps=times)
    assert theirs.timesteps.tolist() == times
    x = cases.numbers("x_t", SHAPE)
    for t, ours in zip(times, sample_loop(diffusion.denoiser, sampler, x), strict=True):
        x = theirs.step(guess(diffusion, x, t), t, x).prev_sample
        torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [5, 18])
def test_heun(diffusion, steps):
    theirs = HeunDiscreteScheduler(trained_betas=diffusion.betas.numpy(), use_karras_sigmas=True)
    theirs.alphas_cumprod = diffusion.alphas_cumprod.clone()
    theirs.set_timesteps(steps)
    # From the first noise level of the schedule to its last, as diffusers does.
    sampler = Heun(steps=steps, sigma_min=1e-9, sigma_max=1e9)
    times = [t for t, _ in sampler.transitions(diffusion.schedule)]
    np.testing.assert_allclose(times, theirs.timesteps[::2].numpy(), rtol=1e-4, atol=1e-3)
    x_t = cases.numbers("x_t", SHAPE)
    y = x_t / diffusion.alpha_bar(times[0]) ** 0.5
    ours = list(sample_loop(diffusion.denoiser, sampler, x_t))[-1]
    for t in theirs.timesteps:
        sigma = float(theirs.sigmas[theirs.index_for_timestep(t) if theirs.step_index is None else theirs.step_index])
        x = theirs.scale_model_input(y, t)
        x0 = guess(diffusion, x, float(t))
        y = theirs.step((y - x0) / sigma, t, y).prev_sample
    # diffusers keeps its noise levels, up to 20,000 on the cosine schedule, in float32.
    torch.testing.assert_close(ours, y, rtol=0, atol=1e-6 * float(theirs.sigmas.max()))


def test_zero_terminal_snr():
    rescaled = process(
        "float64", Guesses(), objective="pred_x0", beta_schedule="linear", weighting="uniform", zero_terminal_snr=True
    )
    plain = process("float64", Guesses(), objective="pred_x0", beta_schedule="linear")
    torch.testing.assert_close(rescaled.betas, rescale_zero_terminal_snr(plain.betas))


def test_noise_and_velocity(diffusion):
    theirs = scheduler(DDPMScheduler, diffusion)
    x0, noise, t = cases.x0(torch.float64), cases.numbers("noise", cases.SHAPE), cases.times()
    torch.testing.assert_close(diffusion.q_sample(x0, t, noise), theirs.add_noise(x0, noise, t))
    torch.testing.assert_close(diffusion.predict_v(x0, t, noise), theirs.get_velocity(x0, noise, t))
