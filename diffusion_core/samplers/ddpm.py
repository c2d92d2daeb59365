"""Ancestral sampling, Ho et al. 2020 (https://arxiv.org/abs/2006.11239), algorithm 2.

    x_{t-1} = c1 x0-hat + c2 x_t + sqrt(var) noise,
    var = b_t (1 - abar_{t-1}) / (1 - abar_t),  c1 = b_t sqrt(abar_{t-1}) / (1 - abar_t),
    c2 = (1 - abar_{t-1}) sqrt(1 - b_t) / (1 - abar_t)

If the network learned the variance, it is exp(v log b_t + (1 - v) log var) (Nichol & Dhariwal 2021, equation 15).
With fewer than T steps, t - 1 stands for the next selected timestep and 1 - b_t = abar_t / abar_{t-1} (section 4).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

from torch import Tensor

from diffusion_core.choices import Choice
from diffusion_core.samplers.protocols import Denoise, Randn, ScheduleLike, Transition
from diffusion_core.samplers.spacing import Spacing, check_steps, spaced_transitions

Number = TypeVar("Number", float, Tensor)


@dataclass(frozen=True)
class DDPM(Choice):
    """Samples from the learned reverse process.

    Attributes:
        multistep: see `Sampler`.
        kind: its name in params.yaml.
        steps: number of network evaluations, 1 .. T; T if None.
        spacing: selects the timesteps; see `samplers/spacing.py`.
    """

    multistep: ClassVar[bool] = False

    kind: Literal["ddpm"] = "ddpm"
    steps: int | None = None
    spacing: Spacing = "linspace"

    def __post_init__(self) -> None:
        check_steps(self.kind, 1 if self.steps is None else self.steps, self.spacing)

    def transitions(self, schedule: ScheduleLike) -> Sequence[Transition]:
        """Return `steps` pairs (t, t_next), or T pairs; see `spaced_transitions`."""
        steps = schedule.num_timesteps if self.steps is None else self.steps
        return spaced_transitions(self.kind, steps, self.spacing, schedule.num_timesteps)

    def step(
        self, schedule: ScheduleLike, denoise: Denoise, x_t: Tensor, t: float, t_next: float, randn: Randn
    ) -> Tensor:
        """Return a sample of x at `t_next`; x0-hat at the last step."""
        x0, _, learned = denoise(x_t, t)
        if t_next < 0:
            return x0
        alpha_bar, alpha_bar_next = schedule.alpha_bar(t), schedule.alpha_bar(t_next)
        beta = 1.0 - alpha_bar / alpha_bar_next
        c1, c2, variance = posterior_coefficients(beta, alpha_bar, alpha_bar_next)
        mean = c1 * x0 + c2 * x_t
        if learned is None:
            return mean + math.sqrt(variance) * randn(x_t)
        least, greatest = math.log(variance), math.log(beta)
        v = (learned + 1.0) * 0.5
        return mean + (0.5 * (least + v * (greatest - least))).exp() * randn(x_t)


def posterior_coefficients(beta: Number, alpha_bar: Number, alpha_bar_next: Number) -> tuple[Number, Number, Number]:
    """Return c1, c2 and var of one step, or of tables of steps."""
    c1 = beta * alpha_bar_next**0.5 / (1.0 - alpha_bar)
    c2 = (1.0 - alpha_bar_next) * (1.0 - beta) ** 0.5 / (1.0 - alpha_bar)
    return c1, c2, beta * (1.0 - alpha_bar_next) / (1.0 - alpha_bar)
