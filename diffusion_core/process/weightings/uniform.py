"""The plain loss of Ho et al. 2020, equation 14, in the objective's own units."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from diffusion_core.kinds import Kind


@dataclass(frozen=True)
class Uniform(Kind):
    """1 at every timestep, whichever the objective; for pred_noise it is the same as `snr`."""

    kind: Literal["uniform"] = "uniform"

    def __call__(self, snr: Tensor, error_ratio: Tensor) -> Tensor:  # noqa: ARG002
        return snr.new_ones(snr.shape)
