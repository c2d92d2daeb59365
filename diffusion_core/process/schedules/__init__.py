"""Beta schedules: one a file, chosen by `kind`; each a function of the number of timesteps, in float64."""

from typing import Protocol

import torch
from torch import Tensor

# Keeps abar_T above zero, so that SNR and the posterior stay finite (Nichol & Dhariwal 2021, section 3.2).
MAX_BETA = 0.999


class BetaSchedule(Protocol):
    """Gives the noise that is added at each timestep."""

    @property
    def kind(self) -> str:
        """The name it is chosen by."""
        ...

    def betas(self, timesteps: int) -> Tensor:
        """Return b_0 .. b_{T-1}: float64, shape (timesteps,), each in (0, 1).

        Raises:
            ValueError: no such schedule exists for that number of timesteps.
        """
        ...


def betas_from_alpha_bar(alpha_bar: Tensor) -> Tensor:
    """Return the betas whose running product of 1 - b is `alpha_bar`, clipped to [0, 0.999].

    Args:
        alpha_bar: float64, shape (T + 1,); the values at the T + 1 borders of the timesteps, first the clean image's.
    """
    alpha_bar = alpha_bar / alpha_bar[0]
    return torch.clip(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.0, MAX_BETA)
