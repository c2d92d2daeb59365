"""Denoising diffusion implicit models, Song et al. 2020 (https://arxiv.org/abs/2010.02502), equations 12 and 16.

sigma = eta sqrt((1 - abar_t / abar_n) (1 - abar_n) / (1 - abar_t)),
x_n = sqrt(abar_n) x0-hat + sqrt(1 - abar_n - sigma^2) noise-hat + sigma noise
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from diffusion_core.kinds import Kind
from diffusion_core.samplers import Denoise, Draw, Process


@dataclass(frozen=True)
class DDIM(Kind):
    """Any number of steps; deterministic at eta = 0, with the variance of DDPM at eta = 1.

    Attributes:
        steps: how often the network runs, 1 to the process's timesteps.
        eta: share of DDPM's noise, in [0, 1].
    """

    kind: Literal["ddim"] = "ddim"
    steps: int = 50
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; DDIM needs at least 1")
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta is {self.eta}; it must lie in [0, 1]")

    def transitions(self, timesteps: int) -> Sequence[tuple[int, int]]:
        if self.steps > timesteps:
            raise ValueError(f"steps is {self.steps}; DDIM can take at most the process's {timesteps} timesteps")
        # In float32, as the established implementations round them.
        times = torch.linspace(-1, timesteps - 1, self.steps + 1).int().tolist()
        return list(pairwise(reversed(times)))

    def step(self, process: Process, denoise: Denoise, x_t: Tensor, t: int, t_next: int, draw: Draw) -> Tensor:
        noise, x0 = denoise(x_t, t)
        if t_next < 0:
            return x0
        alpha_bar, alpha_bar_next = process.alpha_bar(t), process.alpha_bar(t_next)
        sigma = self.eta * math.sqrt((1.0 - alpha_bar / alpha_bar_next) * (1.0 - alpha_bar_next) / (1.0 - alpha_bar))
        direction = math.sqrt(1.0 - alpha_bar_next - sigma**2)
        x_next = math.sqrt(alpha_bar_next) * x0 + direction * noise
        return x_next + sigma * draw(x_t) if sigma > 0.0 else x_next
