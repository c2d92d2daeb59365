"""The schedule of Nichol & Dhariwal 2021 (https://arxiv.org/abs/2102.09672), equation 17."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffusion_core.kinds import Kind
from diffusion_core.process.schedules import betas_from_alpha_bar


@dataclass(frozen=True)
class Cosine(Kind):
    """abar(u) = cos^2((u/T + s) / (1 + s) * pi/2).

    Attributes:
        s: offset that keeps the first betas from vanishing; in (0, 1).
    """

    kind: Literal["cosine"] = "cosine"
    s: float = 0.008

    def __post_init__(self) -> None:
        if not 0.0 < self.s < 1.0:
            raise ValueError(f"s is {self.s}; the cosine schedule's offset must lie between 0 and 1")

    def betas(self, timesteps: int) -> Tensor:
        """Return the T betas, clipped to at most 0.999."""
        u = torch.linspace(0.0, 1.0, timesteps + 1, dtype=torch.float64)
        return betas_from_alpha_bar(torch.cos((u + self.s) / (1.0 + self.s) * math.pi / 2) ** 2)
