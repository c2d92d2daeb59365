"""What a sampler is, and what it may know of the diffusion process.

A sampler is one file with a frozen dataclass. It asks for x0-hat and the noise that goes with it, and never learns
which objective trained the network, whether the previous x0-hat is fed back (self-conditioning) or whether two
predictions are blended (guidance). The loop that drives all samplers is in `loop.py`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

# Gives standard normal noise shaped like its argument.
Randn = Callable[[Tensor], Tensor]

# From one timestep to the next; -1 is the clean image. A float lies between two timesteps.
Transition = tuple[float, float]


class Conditioning(NamedTuple):
    """What a network is told besides x_t and t.

    Attributes:
        classes: labels, int64 (B,); None for the unconditional prediction.
        x_self_cond: the previous x0-hat, (B, C, H, W), for a self-conditioned network; None for zeros.
    """

    classes: Tensor | None = None
    x_self_cond: Tensor | None = None


class Prediction(NamedTuple):
    """What a network's output at (x_t, t) means.

    Attributes:
        x0: x0-hat, the clean image, (B, C, H, W).
        noise: the noise that leads from x0-hat to x_t.
        variance: 2 v - 1 of a network that learned the variance, else None. v in [0, 1] is how far the logarithm of the
            variance lies from the least to the greatest that is possible (Nichol & Dhariwal 2021, equation 15). Both
            bounds depend on the next timestep, which the sampler alone knows.
    """

    x0: Tensor
    noise: Tensor
    variance: Tensor | None


class ScheduleLike(Protocol):
    """The noise by timestep."""

    num_timesteps: int

    def alpha_bar(self, t: float) -> float:
        """Return abar_t in float64; 1 at t = -1, the clean image."""
        ...

    def time_of_sigma(self, sigma: float) -> float:
        """Return the t at which sqrt(1/abar_t - 1) is `sigma`, or the nearest that the schedule has."""
        ...

    def noise_from_x0(self, x_t: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        """Return the noise that leads from x0 to x_t; t is (B,)."""
        ...


class DenoiserLike(Protocol):
    """Gives predictions at one timestep for a batch."""

    @property
    def self_condition(self) -> bool:
        """Whether the previous x0-hat is wanted."""
        ...

    @property
    def num_classes(self) -> int | None:
        """How many labels there are, or None; it is also the null class, the label that stands for none."""
        ...

    def __call__(self, x_t: Tensor, t: float, conditioning: Conditioning, *, clip: bool = True) -> Prediction:
        """Return the prediction; `clip` clips x0-hat to [-1, 1]."""
        ...


class Denoise(Protocol):
    """Gives the prediction at (x_t, t), and remembers the x0-hat before."""

    @property
    def previous(self) -> tuple[float, Tensor] | None:
        """The t and the x0-hat of the last call, or None before the first."""
        ...

    def __call__(self, x_t: Tensor, t: float) -> Prediction: ...


class Sampler(Protocol):
    """A way from x_T to x_0."""

    @property
    def kind(self) -> str:
        """The name it is chosen by."""
        ...

    @property
    def multistep(self) -> bool:
        """Whether a step needs the x0-hat of the step before, so that no step can be taken by itself."""
        ...

    def transitions(self, schedule: ScheduleLike) -> Sequence[Transition]:
        """Return the pairs (t, t_next), falling; the last t_next is -1, the clean image.

        Raises:
            ValueError: the sampler does not fit that schedule.
        """
        ...

    def step(
        self, schedule: ScheduleLike, denoise: Denoise, x_t: Tensor, t: float, t_next: float, randn: Randn
    ) -> Tensor:
        """Return x at `t_next` from `x_t`."""
        ...
