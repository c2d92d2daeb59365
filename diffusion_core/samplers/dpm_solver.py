"""DPM-Solver++(2M), Lu et al. 2022 (https://arxiv.org/abs/2211.01095), algorithm 2: second order.

With alpha = sqrt(abar), sigma = sqrt(1 - abar), lambda = log(alpha / sigma), h = lambda_n - lambda_t, r = h_before / h:

    D   = x0-hat + (x0-hat - x0-hat_before) / (2 r)
    x_n = (sigma_n / sigma_t) x_t - alpha_n (exp(-h) - 1) D
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from diffusion_core.choices import Choice
from diffusion_core.samplers.protocols import Denoise, Randn, ScheduleLike, Transition
from diffusion_core.samplers.spacing import Spacing, check_steps, spaced_transitions


@dataclass(frozen=True)
class DPMSolver(Choice):
    """Deterministic; 15 to 25 steps are about as good as 50 to 100 steps of DDIM.

    Attributes:
        multistep: see `Sampler`.
        kind: its name in params.yaml.
        steps: number of network evaluations, 1 .. T.
        spacing: selects the timesteps; see `samplers/spacing.py`.
    """

    multistep: ClassVar[bool] = True

    kind: Literal["dpm_solver"] = "dpm_solver"
    steps: int = 20
    spacing: Spacing = "linspace"

    def __post_init__(self) -> None:
        check_steps(self.kind, self.steps, self.spacing)

    def transitions(self, schedule: ScheduleLike) -> Sequence[Transition]:
        """Return `steps` pairs (t, t_next); see `spaced_transitions`."""
        return spaced_transitions(self.kind, self.steps, self.spacing, schedule.num_timesteps)

    def step(
        self, schedule: ScheduleLike, denoise: Denoise, x_t: Tensor, t: float, t_next: float, randn: Randn
    ) -> Tensor:
        """Return x at `t_next`; of second order if there is a previous x0-hat, else of first order."""
        before = denoise.previous
        x0 = denoise(x_t, t).x0
        if t_next < 0:
            return x0
        alpha_bar, alpha_bar_next = schedule.alpha_bar(t), schedule.alpha_bar(t_next)
        h = _log_snr_root(alpha_bar_next) - _log_snr_root(alpha_bar)
        slope = x0
        if before is not None:
            t_before, x0_before = before
            h_before = _log_snr_root(alpha_bar) - _log_snr_root(schedule.alpha_bar(t_before))
            slope = x0 + (x0 - x0_before) * (h / (2.0 * h_before))
        shrink = math.sqrt((1.0 - alpha_bar_next) / (1.0 - alpha_bar))
        return shrink * x_t - math.sqrt(alpha_bar_next) * math.expm1(-h) * slope


def _log_snr_root(alpha_bar: float) -> float:
    """Return lambda; -inf for pure noise, which makes the next step first order."""
    return 0.5 * math.log(alpha_bar / (1.0 - alpha_bar)) if alpha_bar > 0.0 else -math.inf
