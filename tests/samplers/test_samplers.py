import math
from itertools import pairwise

import pytest
import torch

from diffusion_core import DDIM, DDPM, GaussianDiffusion, Guidance, Heun, ImageNoise, Unet
from diffusion_core.samplers.loop import Trajectory, sample_loop
from tests.conftest import Network, constant


def gaussian(mean, std, **options):
    """A process whose network knows E[x0 | x_t] for data from N(mean, std^2), in float64.

    E[x0 | x_t] = mean + sqrt(abar) std^2 / (abar std^2 + 1 - abar) (x_t - sqrt(abar) mean)
    """

    def denoiser(x, t, _):
        alpha_bar = torch.tensor([diffusion.alpha_bar(int(step)) for step in t], dtype=x.dtype)[:, None, None, None]
        gain = alpha_bar.sqrt() * std**2 / (alpha_bar * std**2 + 1 - alpha_bar)
        return mean + gain * (x - alpha_bar.sqrt() * mean)

    diffusion = GaussianDiffusion(
        Network(denoiser), image_size=8, objective="pred_x0", auto_normalize=False, **options
    ).double()
    return diffusion


def process(timesteps):
    return GaussianDiffusion(constant(0.0), image_size=4, timesteps=timesteps)


def noise(count, seed=0):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_deterministic_ddim_moves_each_point_to_its_quantile_of_the_data():
    """At eta = 0 the flow of a Gaussian is x_0 = mean + std (x_T - sqrt(abar_T) mean) / std(x_T)."""
    mean, std = 0.2, 0.1
    diffusion = gaussian(mean, std)
    x_t = noise(4)
    images = diffusion.sample(4, sampler=DDIM(steps=1000), noise=x_t)
    alpha_bar = diffusion.alpha_bar(999)
    exact = mean + std * (x_t - math.sqrt(alpha_bar) * mean) / math.sqrt(alpha_bar * std**2 + 1 - alpha_bar)
    torch.testing.assert_close(images, exact, rtol=0.0, atol=0.01)


def test_ddim_comes_closer_with_more_steps():
    mean, std = 0.2, 0.1
    diffusion = gaussian(mean, std)
    x_t = noise(4)
    errors = [
        float((diffusion.sample(4, sampler=DDIM(steps=steps), noise=x_t) - (mean + std * x_t)).abs().mean())
        for steps in (10, 30, 90, 270)
    ]
    assert errors == sorted(errors, reverse=True)
    # First order: three times the steps, a third of the error.
    assert 2.0 < errors[1] / errors[2] < 4.0


@pytest.mark.parametrize("sampler", [DDPM(), DDIM(steps=1000, eta=1.0), DDIM(steps=1000, eta=0.5)], ids=str)
def test_samplers_land_on_the_datas_distribution(sampler):
    mean, std = 0.2, 0.1
    diffusion = gaussian(mean, std)
    torch.manual_seed(0)
    images = diffusion.sample(64, sampler=sampler, noise=noise(64))
    values = images.flatten()
    assert float(values.mean()) == pytest.approx(mean, abs=0.01)
    assert float(values.std()) == pytest.approx(std, rel=0.05)


def test_ddim_with_eta_one_and_every_step_is_ddpm():
    diffusion = gaussian(0.1, 0.3, timesteps=200)
    drawn = [noise(3, seed) for seed in range(201)]

    def replay():
        draws = iter(drawn[1:])
        return lambda like: next(draws)

    ddpm = list(sample_loop(diffusion.denoiser, DDPM(), drawn[0], randn=replay()))
    ddim = list(sample_loop(diffusion.denoiser, DDIM(steps=200, eta=1.0), drawn[0], randn=replay()))
    for one, other in zip(ddpm, ddim, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("t", [1, 10, 500, 999])
def test_one_ddpm_step_is_the_posterior_of_the_process(t):
    diffusion = GaussianDiffusion(constant(0.5), image_size=8, objective="pred_x0")
    x_t = noise(2).float()
    ahead = diffusion.q_posterior(torch.full_like(x_t, 0.5), x_t, torch.full((2,), t))
    added = noise(2, seed=1).float()
    stepped = DDPM().step(
        diffusion.schedule,
        Trajectory(diffusion.denoiser, None),
        x_t,
        t,
        t - 1,
        lambda like: added,
    )
    torch.testing.assert_close(stepped, ahead[0] + ahead[1].sqrt() * added, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("timesteps", "steps"), [(1000, 50), (1000, 1), (1000, 333), (10, 10), (7, 5)])
def test_ddim_walks_from_the_last_timestep_to_the_image(timesteps, steps):
    transitions = DDIM(steps=steps).transitions(process(timesteps).schedule)
    assert len(transitions) == steps
    assert transitions[0][0] == timesteps - 1
    assert transitions[-1][1] == -1
    assert all(t > t_next for t, t_next in transitions)
    assert all(before[1] == after[0] for before, after in pairwise(transitions))


def test_ddim_refuses_more_steps_than_timesteps_and_eta_outside_its_range():
    with pytest.raises(ValueError, match="steps is 11"):
        DDIM(steps=11).transitions(process(10).schedule)
    with pytest.raises(ValueError, match="steps is 0"):
        DDIM(steps=0)
    with pytest.raises(ValueError, match=r"steps is 2.5; ddim needs a whole number"):
        DDIM(steps=2.5)
    with pytest.raises(ValueError, match=r"sampler is 'ddim'; it must be an object"):
        process(10).sample(2, sampler="ddim")
    with pytest.raises(ValueError, match=r"eta is 1.5"):
        DDIM(eta=1.5)


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_the_noise_levels_of_heun_are_those_of_karras(rho):
    diffusion = process(1000)
    times = [t for t, _ in Heun(steps=9, sigma_min=0.05, sigma_max=20.0, rho=rho).transitions(diffusion.schedule)]
    roots = [(1 / diffusion.alpha_bar(t) - 1) ** (0.5 / rho) for t in times]
    assert roots[0] ** rho == pytest.approx(20.0)
    assert roots[-1] ** rho == pytest.approx(0.05)
    steps = [one - other for one, other in pairwise(roots)]
    assert steps == pytest.approx([steps[0]] * 8, rel=1e-6)


def test_heun_refuses_what_it_cannot_walk():
    for options, message in (
        ({"steps": 1}, "steps is 1; heun needs a whole number, at least 2"),
        ({"rho": 0.0}, "rho is 0.0; it must be greater than 0"),
        ({"sigma_min": 3.0, "sigma_max": 2.0}, "it must be 0 < sigma_min < sigma_max"),
    ):
        with pytest.raises(ValueError, match=message):
            Heun(**options)
    with pytest.raises(ValueError, match="a schedule of 1 timesteps has no two noise levels between"):
        Heun().transitions(process(1).schedule)


def test_all_timesteps_begin_with_the_noise_and_end_with_the_image():
    diffusion = gaussian(0.2, 0.1)
    x_t = noise(2)
    walk = diffusion.sample(2, return_all_timesteps=True, sampler=DDIM(steps=5), noise=x_t)
    assert walk.shape == (2, 6, 1, 8, 8)
    assert torch.equal(walk[:, 0], x_t)
    assert torch.equal(walk[:, -1], diffusion.sample(2, sampler=DDIM(steps=5), noise=x_t))


def test_the_previous_guess_is_fed_back_and_the_first_step_gets_none():
    fed = []

    def record(x, t, x_self_cond):
        fed.append(x_self_cond)
        return torch.full_like(x, float(t[0]) / 1000)

    diffusion = GaussianDiffusion(Network(record, self_condition=True), image_size=4, objective="pred_x0")
    diffusion.sample(1, sampler=DDIM(steps=4))
    times = [t for t, _ in DDIM(steps=4).transitions(diffusion.schedule)]
    assert fed[0] is None
    for guess, t in zip(fed[1:], times, strict=False):
        torch.testing.assert_close(guess, torch.full((1, 1, 4, 4), t / 1000))


@pytest.fixture(scope="module")
def conditional():
    torch.manual_seed(0)
    network = Unet(8, dim_mults=(1, 2), channels=1, self_condition=True, num_classes=3)
    return GaussianDiffusion(network, image_size=8, timesteps=100).eval()


def test_an_image_is_the_same_in_any_batch(conditional):
    together = conditional.sample(6, sampler=DDIM(steps=5, eta=0.7), randn=ImageNoise(9, range(6)))
    for index in (0, 3, 5):
        alone = conditional.sample(1, sampler=DDIM(steps=5, eta=0.7), randn=ImageNoise(9, [index]))
        torch.testing.assert_close(alone[0], together[index], rtol=0.0, atol=1e-4)
    other = conditional.sample(1, sampler=DDIM(steps=5, eta=0.7), randn=ImageNoise(10, [0]))
    assert not torch.allclose(other[0], together[0], atol=1e-2)


def test_image_noise_refuses_a_batch_that_is_not_its_own():
    with pytest.raises(ValueError, match="made for 2"):
        ImageNoise(0, range(2))(torch.empty(3, 1, 4, 4))


def test_guidance_is_the_blend_of_the_two_predictions(conditional):
    x_t, classes = torch.randn(2, 1, 8, 8), torch.tensor([0, 2])
    t = torch.full((2,), 99)
    with torch.inference_mode():
        with_label = conditional.model_predictions(x_t, t, classes=classes).pred_x_start
        without = conditional.model_predictions(x_t, t).pred_x_start
    expected = (without + 3.0 * (with_label - without)).clamp(-1, 1)
    images = conditional.sample(2, sampler=DDIM(steps=1), noise=x_t, classes=classes, guidance=Guidance(scale=3.0))
    torch.testing.assert_close(images, (expected + 1) / 2, rtol=1e-4, atol=1e-5)
    plain = conditional.sample(2, sampler=DDIM(steps=1), noise=x_t, classes=classes)
    torch.testing.assert_close(plain, (with_label.clamp(-1, 1) + 1) / 2, rtol=1e-4, atol=1e-5)
