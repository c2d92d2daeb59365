"""What the network predicts: the noise, the clean image, or the velocity."""

from typing import ClassVar, Protocol

from torch import Tensor

from diffusion_core.process.noise_schedule import Coefficients


class Objective(Protocol):
    """What a network predicts.

    Attributes:
        name: its name in params.yaml.
    """

    name: ClassVar[str]

    def target(self, x0: Tensor, noise: Tensor, at: Coefficients) -> Tensor:
        """Return the training target, (B, C, H, W)."""
        ...

    def x0(self, x_t: Tensor, output: Tensor, at: Coefficients) -> Tensor:
        """Return x0-hat, (B, C, H, W), computed from the network's output."""
        ...

    def error_ratio(self, snr: Tensor) -> Tensor:
        """Return the ratio of the output's squared error to that of x0, (T,)."""
        ...


class PredictNoise:
    """The output is the noise (Ho et al. 2020)."""

    name: ClassVar[str] = "pred_noise"

    def target(self, x0: Tensor, noise: Tensor, at: Coefficients) -> Tensor:  # noqa: ARG002
        """Return the noise."""
        return noise

    def x0(self, x_t: Tensor, output: Tensor, at: Coefficients) -> Tensor:
        """Return sqrt(1/abar) x_t - sqrt(1/abar - 1) output."""
        return at.x0_from_noise(x_t, output)

    def error_ratio(self, snr: Tensor) -> Tensor:
        """Return SNR."""
        return snr


class PredictX0:
    """The output is the clean image."""

    name: ClassVar[str] = "pred_x0"

    def target(self, x0: Tensor, noise: Tensor, at: Coefficients) -> Tensor:  # noqa: ARG002
        """Return x0."""
        return x0

    def x0(self, x_t: Tensor, output: Tensor, at: Coefficients) -> Tensor:  # noqa: ARG002
        """Return the output."""
        return output

    def error_ratio(self, snr: Tensor) -> Tensor:
        """Return 1 for each timestep."""
        return snr.new_ones(snr.shape)


class PredictV:
    """The output is the velocity (Salimans & Ho 2022), well-conditioned at both ends of the schedule."""

    name: ClassVar[str] = "pred_v"

    def target(self, x0: Tensor, noise: Tensor, at: Coefficients) -> Tensor:
        """Return sqrt(abar) noise - sqrt(1 - abar) x0."""
        return at.v(x0, noise)

    def x0(self, x_t: Tensor, output: Tensor, at: Coefficients) -> Tensor:
        """Return sqrt(abar) x_t - sqrt(1 - abar) output."""
        return at.x0_from_v(x_t, output)

    def error_ratio(self, snr: Tensor) -> Tensor:
        """Return SNR + 1."""
        return snr + 1.0


OBJECTIVES: dict[str, Objective] = {each.name: each for each in (PredictNoise(), PredictX0(), PredictV())}


def choose_objective(name: str, zero_terminal_snr: bool) -> Objective:
    """Return an objective by its name.

    Raises:
        ValueError: the name is unknown, or it is pred_noise with `zero_terminal_snr`.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"objective is {name!r}; it must be one of {', '.join(OBJECTIVES)}")
    if zero_terminal_snr and name == "pred_noise":
        raise ValueError(
            "objective is 'pred_noise'; with zero_terminal_snr it must be pred_v or pred_x0, because noise says"
            " nothing of the image where there is nothing else"
        )
    return OBJECTIVES[name]
