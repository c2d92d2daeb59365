"""The variance of p(x_{t-1} | x_t): fixed, or learned (Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672).

    log variance = v log b_t + (1 - v) log(b_t (1 - abar_{t-1}) / (1 - abar_t))       (equation 15)

A network that learns it gives 2 v - 1 for each element, in the second half of its channels. Terms of the variational
bound, by which it learns, are in bits (section 2.1).
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from diffusion_core.process.noise_schedule import NoiseSchedule, extract


class Variance(Protocol):
    """What a network's output says of the variance."""

    outputs_per_channel: int

    def split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what the objective is about, and 2 v - 1 or None."""
        ...

    def of(self, learned: Tensor | None, t: Tensor, schedule: NoiseSchedule, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return variance and log variance at timesteps t, broadcasting against `like`; `learned` is from `split`."""
        ...


class FixedVariance:
    """The posterior's variance: the least that is possible."""

    outputs_per_channel = 1

    def split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        return output, None

    def of(self, learned: Tensor | None, t: Tensor, schedule: NoiseSchedule, like: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        variance, log_variance = schedule.posterior_variance, schedule.posterior_log_variance_clipped
        return extract(variance, t, like.shape), extract(log_variance, t, like.shape)


class LearnedVariance:
    """Between the least and the greatest that is possible, as the network says."""

    outputs_per_channel = 2

    def split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        output, learned = output.chunk(2, dim=1)
        return output, learned

    def of(self, learned: Tensor | None, t: Tensor, schedule: NoiseSchedule, like: Tensor) -> tuple[Tensor, Tensor]:
        assert learned is not None
        least = extract(schedule.posterior_log_variance_clipped, t, like.shape)
        greatest = extract(schedule.betas, t, like.shape).log()
        log_variance = least + (learned + 1.0) * 0.5 * (greatest - least)
        return log_variance.exp(), log_variance


def variational_bound(
    schedule: NoiseSchedule, x0: Tensor, x0_hat: Tensor, x_t: Tensor, t: Tensor, log_variance: Tensor
) -> Tensor:
    """Return the term of the variational bound at t, in bits an element, (B,).

    Args:
        schedule: of the process.
        x0: the images in [-1, 1], (B, C, H, W).
        x0_hat: what is predicted for them.
        x_t: what it is predicted from.
        t: timesteps, (B,).
        log_variance: of p(x_{t-1} | x_t).
    """
    true_mean, _, true_log_variance = schedule.q_posterior(x0, x_t, t)
    mean = schedule.q_posterior(x0_hat, x_t, t)[0]
    divergence = normal_kl(true_mean, true_log_variance, mean, log_variance).flatten(1).mean(1)
    decoding = discretized_gaussian_nll(x0, mean, log_variance).flatten(1).mean(1)
    return torch.where(t == 0, decoding, divergence)


def normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """Return KL(N(mean1, variance1) | N(mean2, variance2)) of each element, in bits."""
    ratio = (log_variance1 - log_variance2).exp()
    distance = (mean1 - mean2).square() * (-log_variance2).exp()
    return 0.5 / math.log(2.0) * (log_variance2 - log_variance1 - 1.0 + ratio + distance)


def discretized_gaussian_nll(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return -log2 of the mass that N(mean, variance) has on the 8-bit value of each element of x0.

    The values lie at multiples of 2/255 in [-1, 1]; the outermost take the tails (Ho et al. 2020, equation 13). The
    normal distribution function is approximated by tanh (Page 1977), as the published implementations do.
    """
    inverse_std = (-0.5 * log_variance).exp()
    above = _normal_cdf(inverse_std * (x0 - mean + 1.0 / 255.0))
    below = _normal_cdf(inverse_std * (x0 - mean - 1.0 / 255.0))
    mass = torch.where(x0 < -0.999, above, torch.where(x0 > 0.999, 1.0 - below, above - below))
    return -mass.clamp(min=1e-15).log2()


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
