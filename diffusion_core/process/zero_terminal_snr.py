"""Schedules that end in pure noise, Lin et al. 2023 (https://arxiv.org/abs/2305.08891), algorithm 1.

    s_t = (sqrt(abar_t) - sqrt(abar_T)) sqrt(abar_0) / (sqrt(abar_0) - sqrt(abar_T)),   abar_t <- s_t^2

The usual schedules leave a trace of the image in x_T, mostly its mean brightness, which sampling never gives.
"""

import torch
from torch import Tensor


def rescale_to_zero_terminal_snr(betas: Tensor) -> Tensor:
    """Return betas whose last alpha_bar is exactly 0 and whose first is as it was; float64, (T,).

    Raises:
        ValueError: there is one timestep alone, which cannot be both.
    """
    if len(betas) < 2:
        raise ValueError(f"zero_terminal_snr needs at least 2 timesteps; timesteps is {len(betas)}")
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = root[0], root[-1]
    alpha_bar = ((root - last) * first / (first - last)).square()
    return 1.0 - torch.cat((alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]))
