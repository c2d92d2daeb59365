"""Selects the timesteps of a sampler with fewer than T steps.

The spacings linspace, leading and trailing are those of Lin et al. 2023 (https://arxiv.org/abs/2305.08891), table 2.
Rounding of linspace is as in lucidrains/denoising-diffusion-pytorch. The spacing quadratic is that of DDIM (Song et al.
2020, appendix D.2).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch

Spacing = Literal["linspace", "leading", "trailing", "quadratic"]


def check_steps(kind: str, steps: int, spacing: str) -> None:
    """Check options that no schedule permits.

    Raises:
        ValueError: `steps` is not a whole number of at least 1, or the spacing is unknown.
    """
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps is {steps}; {kind} needs a whole number, at least 1")
    if spacing not in get_args(Spacing):
        raise ValueError(f"spacing is {spacing!r}; it must be one of {', '.join(get_args(Spacing))}")


def spaced_transitions(kind: str, steps: int, spacing: Spacing, timesteps: int) -> Sequence[tuple[int, int]]:
    """Return `steps` pairs (t, t_next) in decreasing order; the last t_next is -1.

    Raises:
        ValueError: there are more steps than timesteps.
    """
    if steps > timesteps:
        raise ValueError(f"steps is {steps}; {kind} can take at most the process's {timesteps} timesteps")
    times = {"linspace": _linspace, "leading": _leading, "trailing": _trailing, "quadratic": _quadratic}[spacing]
    return list(pairwise([*reversed(times(steps, timesteps)), -1]))


def _linspace(steps: int, timesteps: int) -> list[int]:
    # Rounded in float32, as in lucidrains/denoising-diffusion-pytorch.
    times: list[int] = torch.linspace(-1, timesteps - 1, steps + 1).int().tolist()
    return times[1:]


def _leading(steps: int, timesteps: int) -> list[int]:
    """0, k, 2 k ...: the greatest is below T - 1, where x_t still has some signal."""
    return list(range(0, steps * (timesteps // steps), timesteps // steps))


def _trailing(steps: int, timesteps: int) -> list[int]:
    """... T - 1 - k, T - 1: includes T - 1; better than leading for few steps."""
    return [round(timesteps * (step + 1) / steps) - 1 for step in range(steps)]


def _quadratic(steps: int, timesteps: int) -> list[int]:
    """0, c, 4 c, 9 c ... T - 1: dense at low noise, where details form. The paper's code stops at 0.8 T."""
    if steps == 1:
        return [timesteps - 1]
    squares = (round((timesteps - 1) * (step / (steps - 1)) ** 2) for step in range(steps))
    # The first squares are less than one timestep apart.
    return [max(step, square) for step, square in enumerate(squares)]
