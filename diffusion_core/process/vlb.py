"""Terms of the variational bound, Nichol & Dhariwal 2021 (https://arxiv.org/abs/2102.09672), section 2.1, in bits."""

import math

import torch
from torch import Tensor


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
