"""Min-SNR-gamma of Hang et al. 2023 (https://arxiv.org/abs/2303.09556): clean timesteps no longer dominate."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from diffusion_core.kinds import Kind


@dataclass(frozen=True)
class MinSNR(Kind):
    """min(SNR, gamma) on the error of x0.

    Attributes:
        gamma: the cap; greater than 0.
    """

    kind: Literal["min_snr"] = "min_snr"
    gamma: float = 5.0

    def __post_init__(self) -> None:
        if self.gamma <= 0.0:
            raise ValueError(f"gamma is {self.gamma}; min-SNR's cap must be greater than 0")

    def __call__(self, snr: Tensor, error_ratio: Tensor) -> Tensor:
        return snr.clamp(max=self.gamma) / error_ratio
