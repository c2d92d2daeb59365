"""The weighting that all objectives share when pred_noise has weight 1 (Salimans & Ho 2022, section 4)."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from diffusion_core.kinds import Kind


@dataclass(frozen=True)
class SNR(Kind):
    """SNR on the error of x0: pred_noise 1, pred_x0 SNR, pred_v SNR / (SNR + 1)."""

    kind: Literal["snr"] = "snr"

    def __call__(self, snr: Tensor, error_ratio: Tensor) -> Tensor:
        return snr / error_ratio
