"""The interfaces between samplers and the diffusion process.

A sampler is a frozen dataclass in one file. It uses x0-hat and the noise at (x_t, t). It does not depend on the
network's objective, self-conditioning or guidance. `loop.py` has the sampling loop of all samplers.
"""

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

# Returns standard normal noise shaped like its argument.
Randn = Callable[[Tensor], Tensor]

# A pair (t, t_next); -1 is the clean image. A float can be between two timesteps.
Transition = tuple[float, float]


class Conditioning(NamedTuple):
    """The inputs of a network besides x_t and t.

    Attributes:
        classes: labels, int64 (B,); None for the unconditional prediction.
        x_self_cond: the previous x0-hat, (B, C, H, W), for a self-conditioned network; None for zeros.
    """

    classes: Tensor | None = None
    x_self_cond: Tensor | None = None


class Prediction(NamedTuple):
    """A network's prediction at (x_t, t).

    Attributes:
        x0: x0-hat, the predicted clean image, (B, C, H, W).
        noise: the predicted noise, (B, C, H, W).
        variance: 2 v - 1, (B, C, H, W), of a network that learned the variance, else None. A v in [0, 1] interpolates
            the log variance between its bounds (Nichol & Dhariwal 2021, equation 15). The sampler computes the bounds,
            because they depend on the next timestep.
    """

    x0: Tensor
    noise: Tensor
    variance: Tensor | None


def batch_times(t: float, x_t: Tensor) -> Tensor:
    """Return t for each image of a batch, (B,): int64 for a timestep, floating point between two timesteps."""
    dtype = torch.long if isinstance(t, Integral) else torch.promote_types(x_t.dtype, torch.float32)
    return torch.full((len(x_t),), t, device=x_t.device, dtype=dtype)


class ScheduleLike(Protocol):
    """The noise schedule, as a sampler uses it.

    Attributes:
        num_timesteps: T.
    """

    num_timesteps: int

    def alpha_bar(self, t: float) -> float:
        """Return abar_t in float64; 1 at t = -1, the clean image."""
        ...

    def time_of_sigma(self, sigma: float) -> float:
        """Return the t at which sqrt(1/abar_t - 1) is `sigma`, clamped to [0, T-1]."""
        ...

    def noise_from_x0(self, x_t: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        """Return the noise between x0 and x_t, (B, C, H, W); t is (B,)."""
        ...


class DenoiserLike(Protocol):
    """Computes predictions for a batch at one timestep."""

    @property
    def schedule(self) -> ScheduleLike:
        """The noise schedule that the network was trained with."""
        ...

    @property
    def self_condition(self) -> bool:
        """Whether the network takes the previous x0-hat as an input."""
        ...

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None; as a label, this number is the null class."""
        ...

    def __call__(self, x_t: Tensor, t: float, conditioning: Conditioning, *, clip: bool = True) -> Prediction:
        """Return the prediction; `clip` clips x0-hat to [-1, 1]."""
        ...


class Denoise(Protocol):
    """Computes the prediction at (x_t, t) and keeps the previous x0-hat."""

    @property
    def previous(self) -> tuple[float, Tensor] | None:
        """The t and the x0-hat of the last call, or None before the first call."""
        ...

    def __call__(self, x_t: Tensor, t: float) -> Prediction:
        """Return the prediction at (x_t, t)."""
        ...


class Sampler(Protocol):
    """A sampling method."""

    @property
    def kind(self) -> str:
        """Its name in params.yaml."""
        ...

    @property
    def multistep(self) -> bool:
        """Whether a step uses the x0-hat of the previous step."""
        ...

    def transitions(self, schedule: ScheduleLike) -> Sequence[Transition]:
        """Return the pairs (t, t_next) in decreasing order; the last t_next is -1, the clean image.

        Raises:
            ValueError: the sampler does not fit that schedule.
        """
        ...

    def step(
        self, schedule: ScheduleLike, denoise: Denoise, x_t: Tensor, t: float, t_next: float, randn: Randn
    ) -> Tensor:
        """Return x at `t_next`.

        Args:
            schedule: the noise schedule.
            denoise: computes the prediction at (x, t).
            x_t: x at t, (B, C, H, W).
            t: the current timestep.
            t_next: the next timestep; -1 for the clean image.
            randn: source of noise.
        """
        ...
