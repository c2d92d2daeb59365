"""A network that knows the best guess for data from a mixture of two Gaussians, and the exact flow of that data.

Every pixel is drawn by itself from w N(m, s^2) + (1 - w) N(-m, s^2), so in units of the image, y = x_t / sqrt(abar) is
drawn from the same with s^2 + sigma^2 in the place of s^2. In one dimension the flow keeps the order of points: it
takes each to the point with the same share of the data below it.
"""

import math

import torch

from diffusion_core import GaussianDiffusion
from tests.conftest import Network

WEIGHT, MEAN, STD = 0.35, 0.45, 0.12


def mixture(timesteps, **options):
    def denoiser(x, t, _):
        alpha_bar = torch.tensor([diffusion.alpha_bar(float(step)) for step in t], dtype=x.dtype)[:, None, None, None]
        variance = (1 - alpha_bar) / alpha_bar
        y = x / alpha_bar.sqrt()
        spread = STD**2 + variance
        # The logarithm of the odds of the first component.
        odds = math.log(WEIGHT / (1 - WEIGHT)) + 2 * MEAN * y / spread
        mean = MEAN * torch.tanh(odds / 2)
        return (STD**2 * y + variance * mean) / spread

    diffusion = GaussianDiffusion(
        Network(denoiser), image_size=8, timesteps=timesteps, objective="pred_x0", auto_normalize=False, **options
    ).double()
    return diffusion


def share_below(y, sigma):
    """The distribution function of y at noise level sigma."""
    spread = math.sqrt(STD**2 + sigma**2)
    below = [torch.special.ndtr((y - mean) / spread) for mean in (MEAN, -MEAN)]
    return WEIGHT * below[0] + (1 - WEIGHT) * below[1]


def flow(x_t, alpha_bar, alpha_bar_next):
    """Where the exact flow takes x_t from one noise level to the next: found by halving intervals."""
    sigma, sigma_next = (math.sqrt((1 - each) / each) for each in (alpha_bar, alpha_bar_next))
    share = share_below(x_t / math.sqrt(alpha_bar), sigma)
    low, high = torch.full_like(x_t, -1e4), torch.full_like(x_t, 1e4)
    for _ in range(100):
        middle = (low + high) / 2
        under = share_below(middle, sigma_next) < share
        low, high = torch.where(under, middle, low), torch.where(under, high, middle)
    return (low + high) / 2 * math.sqrt(alpha_bar_next)
