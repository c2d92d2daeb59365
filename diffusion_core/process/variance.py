"""The variance of p(x_{t-1} | x_t): fixed, or learned (Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672).

    log variance = v log b_t + (1 - v) log(b_t (1 - abar_{t-1}) / (1 - abar_t))       (equation 15)

A network that learns the variance predicts 2 v - 1 for each element, in the second half of its channels. The terms of
the variational bound, its training loss, are in bits (section 2.1).
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from diffusion_core.process.noise_schedule import NoiseSchedule, extract


class Variance(Protocol):
    """The variance of p(x_{t-1} | x_t): fixed, or part of the network's output.

    Attributes:
        outputs_per_channel: output channels of the network for each channel of an image.
    """

    outputs_per_channel: int

    def split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the output for the objective, and 2 v - 1 or None."""
        ...

    def of(self, learned: Tensor | None, t: Tensor, schedule: NoiseSchedule, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return variance and log variance at timesteps t, broadcasting against `like`; `learned` is from `split`."""
        ...


class FixedVariance:
    """The variance of q(x_{t-1} | x_t, x0), the lower bound."""

    outputs_per_channel = 1

    def split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the output and None."""
        return output, None

    def of(self, learned: Tensor | None, t: Tensor, schedule: NoiseSchedule, like: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return the posterior's variance and log variance at timesteps t, broadcasting against `like`."""
        variance, log_variance = schedule.posterior_variance, schedule.posterior_log_variance_clipped
        return extract(variance, t, like.shape), extract(log_variance, t, like.shape)


class LearnedVariance:
    """Interpolated by the network between the lower bound and the upper bound, b_t (equation 15)."""

    outputs_per_channel = 2

    def split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the two halves of the output's channels."""
        output, learned = output.chunk(2, dim=1)
        return output, learned

    def of(self, learned: Tensor | None, t: Tensor, schedule: NoiseSchedule, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return variance and log variance of each element at timesteps t, shaped like `learned`."""
        assert learned is not None
        least = extract(schedule.posterior_log_variance_clipped, t, like.shape)
        greatest = extract(schedule.betas, t, like.shape).log()
        log_variance = least + (learned + 1.0) * 0.5 * (greatest - least)
        return log_variance.exp(), log_variance


def variational_bound(
    schedule: NoiseSchedule, x0: Tensor, x0_hat: Tensor, x_t: Tensor, t: Tensor, log_variance: Tensor
) -> Tensor:
    """Return the term of the variational bound at t, in bits per element, (B,).

    Args:
        schedule: the noise schedule.
        x0: the images in [-1, 1], (B, C, H, W).
        x0_hat: the prediction of x0, (B, C, H, W).
        x_t: the noised images, (B, C, H, W).
        t: timesteps, (B,).
        log_variance: log variance of p(x_{t-1} | x_t), (B, C, H, W).
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
    """Return -log2 of the probability that N(mean, variance) gives to the 8-bit value of each element of x0.

    The values are 2/255 apart in [-1, 1]; the lowest and the highest include the tails (Ho et al. 2020, equation 13).
    The normal distribution function is approximated by tanh (Page 1977), as in the published implementations.
    """
    inverse_std = (-0.5 * log_variance).exp()
    above = _normal_cdf(inverse_std * (x0 - mean + 1.0 / 255.0))
    below = _normal_cdf(inverse_std * (x0 - mean - 1.0 / 255.0))
    mass = torch.where(x0 < -0.999, above, torch.where(x0 > 0.999, 1.0 - below, above - below))
    return -mass.clamp(min=1e-15).log2()


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
