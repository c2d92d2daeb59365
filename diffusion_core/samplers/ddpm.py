"""Ancestral sampling of Ho et al. 2020 (https://arxiv.org/abs/2006.11239), algorithm 2: every timestep, in turn.

x_{t-1} = c1 x0-hat + c2 x_t + sqrt(var) noise,
var = b_t (1 - abar_{t-1}) / (1 - abar_t),  c1 = b_t sqrt(abar_{t-1}) / (1 - abar_t),
c2 = (1 - abar_{t-1}) sqrt(1 - b_t) / (1 - abar_t)

Where the network learned the variance, log var = v log b_t + (1 - v) log var (Nichol & Dhariwal 2021, equation 15).
With fewer steps, t - 1 is the next timestep visited and 1 - b_t = abar_t / abar_{t-1} (there, section 4).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from diffusion_core.kinds import Kind
from diffusion_core.samplers import Denoise, Draw, Schedule, Transition
from diffusion_core.samplers.spacing import Spacing, check_steps, spaced_transitions


@dataclass(frozen=True)
class DDPM(Kind):
    """A draw from the model itself.

    Attributes:
        steps: how often the network runs; as often as the process has timesteps if None.
        spacing: which timesteps are visited.
    """

    looks_back: ClassVar[bool] = False

    kind: Literal["ddpm"] = "ddpm"
    steps: int | None = None
    spacing: Spacing = "linspace"

    def __post_init__(self) -> None:
        check_steps(self.kind, 1 if self.steps is None else self.steps, self.spacing)

    def transitions(self, schedule: Schedule) -> Sequence[Transition]:
        steps = schedule.num_timesteps if self.steps is None else self.steps
        return spaced_transitions(self.kind, steps, self.spacing, schedule.num_timesteps)

    def step(self, process: Schedule, denoise: Denoise, x_t: Tensor, t: float, t_next: float, draw: Draw) -> Tensor:
        _, x0, learned = denoise(x_t, t)
        if t_next < 0:
            return x0
        alpha_bar, alpha_bar_next = process.alpha_bar(t), process.alpha_bar(t_next)
        alpha = alpha_bar / alpha_bar_next
        c1 = (1.0 - alpha) * math.sqrt(alpha_bar_next) / (1.0 - alpha_bar)
        c2 = (1.0 - alpha_bar_next) * math.sqrt(alpha) / (1.0 - alpha_bar)
        variance = (1.0 - alpha) * (1.0 - alpha_bar_next) / (1.0 - alpha_bar)
        mean = c1 * x0 + c2 * x_t
        if learned is None:
            return mean + math.sqrt(variance) * draw(x_t)
        least, greatest = math.log(variance), math.log(1.0 - alpha)
        return mean + (0.5 * (least + learned * (greatest - least))).exp() * draw(x_t)
