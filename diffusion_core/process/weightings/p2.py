"""Perception-prioritised weighting of Choi et al. 2022 (https://arxiv.org/abs/2204.00227)."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from diffusion_core.kinds import Kind


@dataclass(frozen=True)
class P2(Kind):
    """(k + SNR)^-gamma on the objective's own error, whichever the objective.

    Attributes:
        gamma: strength, at least 0; 0 weighs every timestep alike.
        k: keeps the weight finite in the noise; greater than 0.
    """

    kind: Literal["p2"] = "p2"
    gamma: float = 1.0
    k: float = 1.0

    def __post_init__(self) -> None:
        if self.gamma < 0.0:
            raise ValueError(f"gamma is {self.gamma}; the strength of p2 must be at least 0")
        if self.k <= 0.0:
            raise ValueError(f"k is {self.k}; p2 needs a value greater than 0")

    def __call__(self, snr: Tensor, error_ratio: Tensor) -> Tensor:  # noqa: ARG002
        return (self.k + snr) ** -self.gamma
