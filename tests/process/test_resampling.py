"""Images are noised to a timestep and denoised from there, by every sampler."""

import math

import pytest
import torch

from diffusion_core import DDIM, GaussianDiffusion, Unet
from tests.conftest import Network
from tests.samplers.every import every_sampler

SHAPE = (5, 1, 8, 8)


def fixed(seed):
    """A source of noise that begins anew."""
    generator = torch.Generator().manual_seed(seed)
    return lambda like: torch.randn(like.shape, generator=generator, dtype=like.dtype)


def images():
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def unet(timesteps=40):
    torch.manual_seed(0)
    return GaussianDiffusion(Unet(8, dim_mults=(1, 2), channels=1), image_size=8, timesteps=timesteps).double().eval()


@pytest.mark.parametrize("sampler", every_sampler(8), ids=lambda sampler: sampler.kind)
def test_from_the_greatest_timestep_it_is_sampling_from_the_noised_images(sampler):
    diffusion = unet()
    first = sampler.transitions(diffusion.schedule)[0][0]
    alpha_bar, randn = diffusion.schedule.alpha_bar(first), fixed(3)
    noised = math.sqrt(alpha_bar) * (2 * images() - 1) + math.sqrt(1 - alpha_bar) * randn(images())
    expected = diffusion.sample(5, sampler=sampler, noise=noised, randn=randn)
    found = diffusion.resample(images(), 39, sampler=sampler, randn=fixed(3))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampler", every_sampler(8), ids=lambda sampler: sampler.kind)
def test_a_network_that_knows_the_image_gives_it_back_from_every_timestep(sampler):
    x0 = 2 * images() - 1
    diffusion = GaussianDiffusion(Network(lambda *_: x0), image_size=8, timesteps=40, objective="pred_x0").double()
    for t in (39, 20, 5):
        torch.testing.assert_close(diffusion.resample(images(), t, sampler=sampler), images(), rtol=0, atol=1e-6)


def test_transitions_from_above_are_left_out():
    asked = []
    diffusion = GaussianDiffusion(
        Network(lambda x, t, _: asked.append(int(t[0])) or x), image_size=8, timesteps=40, objective="pred_x0"
    ).double()
    diffusion.resample(images(), 24, sampler=DDIM(steps=8))
    # Of 4, 9, 14 ... 39.
    assert asked == [24, 19, 14, 9, 4]


@pytest.mark.parametrize("t", [-1, 40, 3])
def test_a_timestep_that_does_not_exist_or_is_below_the_samplers_is_refused(t):
    with pytest.raises(
        ValueError, match=f"t is {t}; it must lie in 0 .. 39, and the sampler needs a timestep up to it"
    ):
        unet().resample(images(), t, sampler=DDIM(steps=8))


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"this process is for \(1, 8, 8\)"):
        unet().resample(torch.zeros(2, 1, 4, 4), 20)
