"""Loss weights by signal-to-noise ratio.

The three objectives measure the same error in different units: with e = x0 - x0-hat,

    |noise error|^2 = SNR |e|^2,     |v error|^2 = (SNR + 1) |e|^2.

`error_ratio` is this ratio of the objective's squared error to that of x0. A weighting in x0-space is written once and
divided by it.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from diffusion_core.choices import Choice, choose


class Weighting(Protocol):
    """The factor of the loss at each timestep."""

    @property
    def kind(self) -> str:
        """Its name in params.yaml."""
        ...

    def __call__(self, snr: Tensor, error_ratio: Tensor) -> Tensor:
        """Return the weight of each timestep, (T,).

        Args:
            snr: abar / (1 - abar), (T,).
            error_ratio: ratio of the objective's squared error to that of x0, (T,).
        """
        ...


@dataclass(frozen=True)
class SNR(Choice):
    """SNR on the error of x0: pred_noise 1, pred_x0 SNR, pred_v SNR / (SNR + 1) (Salimans & Ho 2022, section 4)."""

    kind: Literal["snr"] = "snr"

    def __call__(self, snr: Tensor, error_ratio: Tensor) -> Tensor:
        """Return SNR / error_ratio, (T,)."""
        return snr / error_ratio


@dataclass(frozen=True)
class MinSNR(Choice):
    """min(SNR, gamma) on the error of x0 (Hang et al. 2023, https://arxiv.org/abs/2303.09556).

    The cap keeps timesteps with little noise from dominating.

    Attributes:
        gamma: the cap, greater than 0.
    """

    kind: Literal["min_snr"] = "min_snr"
    gamma: float = 5.0

    def __post_init__(self) -> None:
        if self.gamma <= 0.0:
            raise ValueError(f"gamma is {self.gamma}; min-SNR's cap must be greater than 0")

    def __call__(self, snr: Tensor, error_ratio: Tensor) -> Tensor:
        """Return min(SNR, gamma) / error_ratio, (T,)."""
        return snr.clamp(max=self.gamma) / error_ratio


@dataclass(frozen=True)
class P2(Choice):
    """(k + SNR)^-gamma on the objective's own error (Choi et al. 2022, https://arxiv.org/abs/2204.00227).

    Attributes:
        gamma: strength, at least 0; 0 gives every timestep the weight 1.
        k: keeps the weight finite at SNR 0; greater than 0.
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
        """Return (k + SNR)^-gamma, (T,)."""
        return (self.k + snr) ** -self.gamma


@dataclass(frozen=True)
class Uniform(Choice):
    """1 at every timestep for every objective (Ho et al. 2020, equation 14); for pred_noise the same as `SNR`."""

    kind: Literal["uniform"] = "uniform"

    def __call__(self, snr: Tensor, error_ratio: Tensor) -> Tensor:  # noqa: ARG002
        """Return ones, (T,)."""
        return snr.new_ones(snr.shape)


WeightingChoice = SNR | MinSNR | P2 | Uniform


def chosen_weighting(weighting: str | Weighting | None, min_snr: bool, gamma: float) -> Weighting:
    """Return the weighting; build it if it is given by name. `min_snr` selects min-SNR with `gamma`.

    Raises:
        ValueError: the name is unknown, gamma is not above 0, or both `weighting` and `min_snr` are given.
    """
    if min_snr and weighting is not None:
        raise ValueError(
            f"min_snr_loss_weight is True and weighting is {weighting!r}, which excludes it: leave one of them out"
        )
    if min_snr and not gamma > 0.0:
        raise ValueError(f"min_snr_gamma is {gamma}; it must be greater than 0")
    if min_snr:
        return MinSNR(gamma=gamma)
    if isinstance(weighting, str) or weighting is None:
        named: Weighting = choose(WeightingChoice, weighting or "snr", "weighting")
        return named
    return weighting
