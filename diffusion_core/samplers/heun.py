"""Heun's method in the noise level, Karras et al. 2022 (https://arxiv.org/abs/2206.00364), algorithm 1, equation 5.

With sigma = sqrt(1/abar - 1) and y = x_t / sqrt(abar) = x0 + sigma noise, it solves dy/dsigma = (y - x0-hat) / sigma:

    sigma_i = (sigma_max^(1/rho) + i / (S-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho,   sigma_S = 0
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from torch import Tensor

from diffusion_core.choices import Choice
from diffusion_core.samplers.protocols import Denoise, Randn, ScheduleLike, Transition


@dataclass(frozen=True)
class Heun(Choice):
    """Deterministic and of second order; evaluates the network 2 S - 1 times, also between timesteps.

    Attributes:
        multistep: see `Sampler`.
        kind: its name in params.yaml.
        steps: S, at least 2.
        sigma_min: the last noise level before the image; greater than 0.
        sigma_max: the first noise level; greater than `sigma_min`. Both are clamped to the schedule's range.
        rho: a greater one spaces the levels more densely near the image; greater than 0.
    """

    multistep: ClassVar[bool] = False

    kind: Literal["heun"] = "heun"
    steps: int = 18
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not isinstance(self.steps, int) or self.steps < 2:
            raise ValueError(f"steps is {self.steps}; heun needs a whole number, at least 2")
        if self.rho <= 0.0:
            raise ValueError(f"rho is {self.rho}; it must be greater than 0")
        if not 0.0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"sigma_min is {self.sigma_min} and sigma_max {self.sigma_max}; it must be 0 < sigma_min < sigma_max"
            )

    def transitions(self, schedule: ScheduleLike) -> Sequence[Transition]:
        """Return S pairs (t, t_next) of floating-point timesteps; the last t_next is -1.

        Raises:
            ValueError: two noise levels have the same t, because the schedule is too coarse.
        """
        first, last = (
            _sigma(schedule.alpha_bar(schedule.time_of_sigma(sigma))) ** (1.0 / self.rho)
            for sigma in (self.sigma_max, self.sigma_min)
        )
        sigmas = [(first + step / (self.steps - 1) * (last - first)) ** self.rho for step in range(self.steps)]
        times = [schedule.time_of_sigma(sigma) for sigma in sigmas]
        if any(t <= t_next for t, t_next in pairwise(times)):
            raise ValueError(
                f"sigma_min is {self.sigma_min} and sigma_max {self.sigma_max}; a schedule of {schedule.num_timesteps}"
                " timesteps has no two noise levels between: take another sampler or more timesteps"
            )
        return list(pairwise([*times, -1]))

    def step(
        self, schedule: ScheduleLike, denoise: Denoise, x_t: Tensor, t: float, t_next: float, randn: Randn
    ) -> Tensor:
        """Return x at `t_next` by an Euler step and its trapezoidal correction."""
        x0 = denoise(x_t, t).x0
        if t_next < 0:
            return x0
        alpha_bar, alpha_bar_next = schedule.alpha_bar(t), schedule.alpha_bar(t_next)
        sigma, sigma_next = _sigma(alpha_bar), _sigma(alpha_bar_next)
        y = x_t / math.sqrt(alpha_bar)
        slope = (y - x0) / sigma
        euler = y + (sigma_next - sigma) * slope
        ahead = (euler - denoise(euler * math.sqrt(alpha_bar_next), t_next).x0) / sigma_next
        return (y + (sigma_next - sigma) * 0.5 * (slope + ahead)) * math.sqrt(alpha_bar_next)


def _sigma(alpha_bar: float) -> float:
    return math.sqrt((1.0 - alpha_bar) / alpha_bar)
