"""The schedule of Ho et al. 2020 (https://arxiv.org/abs/2006.11239), scaled so that it does not depend on T."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffusion_core.kinds import Kind


@dataclass(frozen=True)
class Linear(Kind):
    """b rises evenly from 1e-4 to 0.02 at T = 1000; other T scale both ends by 1000 / T."""

    kind: Literal["linear"] = "linear"

    def betas(self, timesteps: int) -> Tensor:
        """Return linspace(1e-4, 0.02, T) * 1000 / T.

        Raises:
            ValueError: T is so small that the last beta reaches 1.
        """
        scale = 1000 / timesteps
        last = scale * 0.02
        if last >= 1.0:
            raise ValueError(
                f"timesteps is {timesteps}; the linear schedule needs at least 21, because its last beta would be"
                f" {last:.3g} and must stay below 1: raise timesteps or take the cosine or sigmoid schedule"
            )
        return torch.linspace(scale * 1e-4, last, timesteps, dtype=torch.float64)
