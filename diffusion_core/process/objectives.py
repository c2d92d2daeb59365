"""What the network predicts, and how each prediction gives the others.

With alpha_t = sqrt(abar_t), sigma_t = sqrt(1 - abar_t) and x_t = alpha_t x0 + sigma_t noise:

    noise = (x_t - alpha_t x0) / sigma_t          (Ho et al. 2020)
    v     = alpha_t noise - sigma_t x0            (Salimans & Ho 2022)

The functions are written with the reciprocals sqrt(1/abar) and sqrt(1/abar - 1) where the established
implementations have them, so that rounding agrees in float32.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Coefficients:
    """The schedule at the timesteps of a batch; each broadcasts against an image batch."""

    sqrt_alpha_bar: Tensor
    sqrt_one_minus_alpha_bar: Tensor
    sqrt_recip_alpha_bar: Tensor
    sqrt_recipm1_alpha_bar: Tensor


def x0_from_noise(x_t: Tensor, noise: Tensor, at: Coefficients) -> Tensor:
    """x0 = sqrt(1/abar) x_t - sqrt(1/abar - 1) noise."""
    return at.sqrt_recip_alpha_bar * x_t - at.sqrt_recipm1_alpha_bar * noise


def noise_from_x0(x_t: Tensor, x0: Tensor, at: Coefficients) -> Tensor:
    """Noise = (sqrt(1/abar) x_t - x0) / sqrt(1/abar - 1)."""
    return (at.sqrt_recip_alpha_bar * x_t - x0) / at.sqrt_recipm1_alpha_bar


def v_from_x0(x0: Tensor, noise: Tensor, at: Coefficients) -> Tensor:
    """v = sqrt(abar) noise - sqrt(1 - abar) x0."""
    return at.sqrt_alpha_bar * noise - at.sqrt_one_minus_alpha_bar * x0


def x0_from_v(x_t: Tensor, v: Tensor, at: Coefficients) -> Tensor:
    """x0 = sqrt(abar) x_t - sqrt(1 - abar) v."""
    return at.sqrt_alpha_bar * x_t - at.sqrt_one_minus_alpha_bar * v


class Objective(Protocol):
    """One meaning of the network's output."""

    name: ClassVar[str]

    def target(self, x0: Tensor, noise: Tensor, at: Coefficients) -> Tensor:
        """What the output should be."""
        ...

    def x0(self, x_t: Tensor, output: Tensor, at: Coefficients) -> Tensor:
        """The clean image that the output stands for."""
        ...

    def error_ratio(self, snr: Tensor) -> Tensor:
        """The output's squared error in units of x0's."""
        ...


class PredictNoise:
    """The output is the noise (Ho et al. 2020)."""

    name: ClassVar[str] = "pred_noise"

    def target(self, x0: Tensor, noise: Tensor, at: Coefficients) -> Tensor:  # noqa: ARG002
        return noise

    def x0(self, x_t: Tensor, output: Tensor, at: Coefficients) -> Tensor:
        return x0_from_noise(x_t, output, at)

    def error_ratio(self, snr: Tensor) -> Tensor:
        return snr


class PredictX0:
    """The output is the clean image."""

    name: ClassVar[str] = "pred_x0"

    def target(self, x0: Tensor, noise: Tensor, at: Coefficients) -> Tensor:  # noqa: ARG002
        return x0

    def x0(self, x_t: Tensor, output: Tensor, at: Coefficients) -> Tensor:  # noqa: ARG002
        return output

    def error_ratio(self, snr: Tensor) -> Tensor:
        return snr.new_ones(snr.shape)


class PredictV:
    """The output is the velocity (Salimans & Ho 2022), well-conditioned at both ends of the schedule."""

    name: ClassVar[str] = "pred_v"

    def target(self, x0: Tensor, noise: Tensor, at: Coefficients) -> Tensor:
        return v_from_x0(x0, noise, at)

    def x0(self, x_t: Tensor, output: Tensor, at: Coefficients) -> Tensor:
        return x0_from_v(x_t, output, at)

    def error_ratio(self, snr: Tensor) -> Tensor:
        return snr + 1.0


OBJECTIVES: dict[str, Objective] = {each.name: each for each in (PredictNoise(), PredictX0(), PredictV())}
