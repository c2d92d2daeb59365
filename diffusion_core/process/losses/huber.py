"""Huber 1964 (https://doi.org/10.1214/aoms/1177703732): squared for small errors, absolute for large ones."""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from diffusion_core.kinds import Kind


@dataclass(frozen=True)
class Huber(Kind):
    """e^2 / 2 up to |e| = delta, delta (|e| - delta / 2) beyond.

    Attributes:
        delta: where the two meet; greater than 0.
    """

    kind: Literal["huber"] = "huber"
    delta: float = 1.0

    def __post_init__(self) -> None:
        if self.delta <= 0.0:
            raise ValueError(f"delta is {self.delta}; the Huber loss needs a value greater than 0")

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return F.huber_loss(output, target, reduction="none", delta=self.delta)
