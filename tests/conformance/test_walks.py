"""Whole walks from given noises are those of denoising-diffusion-pytorch."""

from unittest import mock

import pytest
import torch

from diffusion_core import DDIM, DDPM
from tests.conformance import cases
from tests.conformance.golden import PROCESSES, assert_equal, key, process


def kept(walk):
    return torch.cat((walk[:, :: cases.KEPT], walk[:, -1:]), dim=1)


def few(schedule, objective, self_condition, dtype):
    return process(
        dtype,
        cases.Waves(self_condition),
        timesteps=cases.FEW_TIMESTEPS,
        objective=objective,
        beta_schedule=schedule,
    )


def drawn(name, dtype):
    noises = cases.replay(name, cases.WALK_SHAPE, cases.DTYPES[dtype])
    return next(noises), lambda like: next(noises)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize(("schedule", "objective", "self_condition"), PROCESSES)
def test_a_ddpm_walk(schedule, objective, self_condition, dtype):
    diffusion = few(schedule, objective, self_condition, dtype)
    x_t, draw = drawn("ddpm", dtype)
    walk = diffusion.sample(len(x_t), True, sampler=DDPM(), noise=x_t, randn=draw)
    assert_equal(kept(walk), f"{key(schedule, objective, self_condition, dtype)}/ddpm", dtype)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("eta", cases.DDIM_ETAS)
@pytest.mark.parametrize("steps", cases.DDIM_STEPS)
@pytest.mark.parametrize(("schedule", "objective", "self_condition"), PROCESSES)
def test_a_ddim_walk(schedule, objective, self_condition, steps, eta, dtype):
    diffusion = few(schedule, objective, self_condition, dtype)
    x_t, draw = drawn("ddim", dtype)
    walk = diffusion.sample(len(x_t), True, sampler=DDIM(steps=steps, eta=eta), noise=x_t, randn=draw)
    assert_equal(kept(walk), f"{key(schedule, objective, self_condition, dtype)}/ddim.{steps}.{eta}", dtype)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize(("schedule", "objective", "self_condition"), PROCESSES)
def test_an_interpolation(schedule, objective, self_condition, dtype):
    diffusion = few(schedule, objective, self_condition, dtype)
    x1, x2 = (cases.numbers(name, cases.WALK_SHAPE, cases.DTYPES[dtype]).clamp(-1, 1) for name in ("x1", "x2"))
    noises = cases.replay("interpolate", cases.WALK_SHAPE, cases.DTYPES[dtype])
    with mock.patch.object(torch, "randn_like", side_effect=lambda *_: next(noises)):
        between = diffusion.interpolate(x1, x2, t=20, lam=0.3)
    assert_equal(between, f"{key(schedule, objective, self_condition, dtype)}/interpolate", dtype)


def test_the_packages_names_for_walks_are_the_same_walks():
    diffusion = process("float32", timesteps=30, sampling_timesteps=4, ddim_sampling_eta=0.5)
    for call, sampler in (("p_sample_loop", DDPM()), ("ddim_sample", DDIM(steps=4, eta=0.5))):
        torch.manual_seed(0)
        by_name = getattr(diffusion, call)(cases.WALK_SHAPE, return_all_timesteps=True)
        torch.manual_seed(0)
        assert torch.equal(by_name, diffusion.sample(cases.WALK_SHAPE[0], True, sampler=sampler))
    with pytest.raises(ValueError, match=r"shape is \(1, 3, 4, 6\); after the first number it must be \(2, 4, 6\)"):
        diffusion.ddim_sample((1, 3, 4, 6))
