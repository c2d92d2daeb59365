"""The schedule of Jabri et al. 2022 (https://arxiv.org/abs/2212.11972), appendix B; better for images past 64x64."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffusion_core.kinds import Kind
from diffusion_core.process.schedules import betas_from_alpha_bar


@dataclass(frozen=True)
class Sigmoid(Kind):
    """abar(u) = (g(end) - g(start + u/T (end - start))) / (g(end) - g(start)), with g(x) = sigmoid(x / tau).

    Attributes:
        start: argument of the sigmoid at the clean image.
        end: argument at the noise; greater than `start`.
        tau: temperature; greater than 0, and a smaller one makes the middle steeper.
    """

    kind: Literal["sigmoid"] = "sigmoid"
    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0

    def __post_init__(self) -> None:
        if self.end <= self.start:
            raise ValueError(f"end is {self.end}; the sigmoid schedule's end must be greater than start, {self.start}")
        if self.tau <= 0.0:
            raise ValueError(f"tau is {self.tau}; the sigmoid schedule's temperature must be greater than 0")

    def betas(self, timesteps: int) -> Tensor:
        """Return the T betas, clipped to at most 0.999."""
        u = torch.linspace(0.0, 1.0, timesteps + 1, dtype=torch.float64)
        # Rounded as lucidrains/denoising-diffusion-pytorch rounds them, because the last abar, 3e-7, is the difference
        # of two nearly equal numbers and differs by 3e-5 of itself otherwise.
        first, last = torch.sigmoid(
            torch.tensor([self.start / self.tau, self.end / self.tau], dtype=torch.float32)
        ).double()
        here = torch.sigmoid((u * (self.end - self.start) + self.start) / self.tau)
        return betas_from_alpha_bar((last - here) / (last - first))
