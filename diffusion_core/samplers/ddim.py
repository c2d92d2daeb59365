"""Denoising diffusion implicit models, Song et al. 2020 (https://arxiv.org/abs/2010.02502), equations 12 and 16.

With n the next timestep and r the share of the noise that is replaced by new noise:

    sigma^2 = (1 - abar_n) r,  r = eta^2 (1 - abar_t / abar_n) / (1 - abar_t),
    x_n = sqrt(abar_n) x0-hat + sqrt(1 - abar_n - sigma^2) noise-hat + sigma noise
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
class DDIM(Choice):
    """Deterministic for eta = 0; has the variance of DDPM for eta = 1.

    Attributes:
        multistep: see `Sampler`.
        kind: its name in params.yaml.
        steps: number of network evaluations, 1 .. T.
        eta: noise as a fraction of DDPM's, in [0, 1].
        spacing: selects the timesteps; see `samplers/spacing.py`.
    """

    multistep: ClassVar[bool] = False

    kind: Literal["ddim"] = "ddim"
    steps: int = 50
    eta: float = 0.0
    spacing: Spacing = "linspace"

    def __post_init__(self) -> None:
        check_steps(self.kind, self.steps, self.spacing)
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta is {self.eta}; it must lie in [0, 1]")

    def transitions(self, schedule: ScheduleLike) -> Sequence[Transition]:
        """Return `steps` pairs (t, t_next); see `spaced_transitions`."""
        return spaced_transitions(self.kind, self.steps, self.spacing, schedule.num_timesteps)

    def step(
        self, schedule: ScheduleLike, denoise: Denoise, x_t: Tensor, t: float, t_next: float, randn: Randn
    ) -> Tensor:
        """Return x at `t_next` by equation 12."""
        x0, noise, _ = denoise(x_t, t)
        if t_next < 0:
            return x0
        alpha_bar, alpha_bar_next = schedule.alpha_bar(t), schedule.alpha_bar(t_next)
        # In this form rounding gives no negative square root for eta = 1 and x_t of pure noise.
        renewed = self.eta**2 * (1.0 - alpha_bar / alpha_bar_next) / (1.0 - alpha_bar)
        sigma = math.sqrt((1.0 - alpha_bar_next) * renewed)
        direction = math.sqrt((1.0 - alpha_bar_next) * max(0.0, 1.0 - renewed))
        x_next = math.sqrt(alpha_bar_next) * x0 + direction * noise
        return x_next + sigma * randn(x_t) if sigma > 0.0 else x_next
