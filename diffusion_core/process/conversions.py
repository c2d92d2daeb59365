"""Conversions between images, noise and v.

Each function is the method of `GaussianDiffusion` with the same name, so its first argument is `self`.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusion_core.process.gaussian_diffusion import GaussianDiffusion


def predict_start_from_noise(self: "GaussianDiffusion", x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Return x0 = sqrt(1/abar) x_t - sqrt(1/abar - 1) noise."""
    return self.schedule.at(t, x_t).x0_from_noise(x_t, noise)


def predict_noise_from_start(self: "GaussianDiffusion", x_t: Tensor, t: Tensor, x0: Tensor) -> Tensor:
    """Return noise = (sqrt(1/abar) x_t - x0) / sqrt(1/abar - 1)."""
    return self.schedule.at(t, x_t).noise_from_x0(x_t, x0)


def predict_v(self: "GaussianDiffusion", x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Return v = sqrt(abar) noise - sqrt(1 - abar) x0."""
    return self.schedule.at(t, x_start).v(x_start, noise)


def predict_start_from_v(self: "GaussianDiffusion", x_t: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """Return x0 = sqrt(abar) x_t - sqrt(1 - abar) v."""
    return self.schedule.at(t, x_t).x0_from_v(x_t, v)


def q_sample(self: "GaussianDiffusion", x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
    """Return x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise (Ho et al. 2020, equation 4)."""
    return self.schedule.q_sample(x_start, t, torch.randn_like(x_start) if noise is None else noise)


def q_posterior(self: "GaussianDiffusion", x_start: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, variance and log variance of q(x_{t-1} | x_t, x0) (Ho et al. 2020, equations 6 and 7)."""
    return self.schedule.q_posterior(x_start, x_t, t)
