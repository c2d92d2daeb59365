"""Ancestral sampling of Ho et al. 2020 (https://arxiv.org/abs/2006.11239), algorithm 2: every timestep, in turn.

x_{t-1} = c1 x0-hat + c2 x_t + sqrt(var) noise,
var = b_t (1 - abar_{t-1}) / (1 - abar_t),  c1 = b_t sqrt(abar_{t-1}) / (1 - abar_t),
c2 = (1 - abar_{t-1}) sqrt(1 - b_t) / (1 - abar_t)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from diffusion_core.kinds import Kind
from diffusion_core.samplers import Denoise, Draw, Process


@dataclass(frozen=True)
class DDPM(Kind):
    """As many steps as the process has timesteps."""

    kind: Literal["ddpm"] = "ddpm"

    def transitions(self, timesteps: int) -> Sequence[tuple[int, int]]:
        return [(t, t - 1) for t in reversed(range(timesteps))]

    def step(self, process: Process, denoise: Denoise, x_t: Tensor, t: int, t_next: int, draw: Draw) -> Tensor:
        x0 = denoise(x_t, t).pred_x_start
        if t_next < 0:
            return x0
        alpha_bar, alpha_bar_next = process.alpha_bar(t), process.alpha_bar(t_next)
        alpha = alpha_bar / alpha_bar_next
        c1 = (1.0 - alpha) * math.sqrt(alpha_bar_next) / (1.0 - alpha_bar)
        c2 = (1.0 - alpha_bar_next) * math.sqrt(alpha) / (1.0 - alpha_bar)
        variance = (1.0 - alpha) * (1.0 - alpha_bar_next) / (1.0 - alpha_bar)
        return c1 * x0 + c2 * x_t + math.sqrt(variance) * draw(x_t)
