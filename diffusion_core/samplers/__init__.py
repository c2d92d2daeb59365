"""From noise to images: what a sampler is, and what it may know of the diffusion process.

A sampler is one file with a frozen dataclass. It asks the loop's denoiser for x0-hat and the noise that goes with it,
and never learns which objective trained the network, whether the guess before is fed back (self-conditioning) or
whether two guesses are blended (guidance). The loop that drives them all is in `loop.py`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

# Gives standard normal noise shaped like its argument.
Draw = Callable[[Tensor], Tensor]

# From one timestep to the next; -1 is the clean image. A float lies between two timesteps.
Transition = tuple[float, float]


class ModelPrediction(NamedTuple):
    """The network's opinion at (x_t, t): the noise and the clean image, both (B, C, H, W)."""

    pred_noise: Tensor
    pred_x_start: Tensor


class LearnedModelPrediction(NamedTuple):
    """The same of a network that has learned the variance too.

    Attributes:
        pred_noise: the noise, (B, C, H, W).
        pred_x_start: the clean image.
        pred_variance: 2 v - 1, where v in [0, 1] is how far the logarithm of the variance lies from the least to the
            greatest that is possible (Nichol & Dhariwal 2021, equation 15).
    """

    pred_noise: Tensor
    pred_x_start: Tensor
    pred_variance: Tensor


class Schedule(Protocol):
    """The noise by timestep."""

    num_timesteps: int

    def alpha_bar(self, t: float) -> float:
        """Return abar_t in float64; 1 at t = -1, the clean image."""
        ...

    def time_of_sigma(self, sigma: float) -> float:
        """Return the t at which sqrt(1/abar_t - 1) is `sigma`, or the nearest that the schedule has."""
        ...


class Process(Schedule, Protocol):
    """What a sampler may know of the diffusion process."""

    self_condition: bool
    num_classes: int | None

    def model_predictions(
        self,
        x: Tensor,
        t: Tensor,
        x_self_cond: Tensor | None = None,
        clip_x_start: bool = False,
        rederive_pred_noise: bool = False,
        *,
        classes: Tensor | None = None,
    ) -> ModelPrediction | LearnedModelPrediction:
        """Run the network and convert its output."""
        ...

    def predict_noise_from_start(self, x_t: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        """Return the noise that leads from x0 to x_t."""
        ...


class Denoised(NamedTuple):
    """What a step starts from.

    Attributes:
        noise: the noise that leads from x0 to x_t, (B, C, H, W).
        x0: the guess of the clean image, in [-1, 1].
        variance: v of a network that learned the variance, else None.
    """

    noise: Tensor
    x0: Tensor
    variance: Tensor | None


class Denoise(Protocol):
    """Gives x0-hat at (x_t, t), and remembers the one before."""

    @property
    def previous(self) -> tuple[float, Tensor] | None:
        """The t and the x0-hat of the last call, or None before the first."""
        ...

    def __call__(self, x_t: Tensor, t: float) -> Denoised: ...


class Sampler(Protocol):
    """A way from x_T to x_0."""

    @property
    def kind(self) -> str:
        """The name it is chosen by."""
        ...

    @property
    def looks_back(self) -> bool:
        """Whether a step needs the guess of the step before, so that no step can be taken by itself."""
        ...

    def transitions(self, schedule: Schedule) -> Sequence[Transition]:
        """Return the pairs (t, t_next), falling; the last t_next is -1, the clean image.

        Raises:
            ValueError: the sampler cannot walk that schedule.
        """
        ...

    def step(self, process: Schedule, denoise: Denoise, x_t: Tensor, t: float, t_next: float, draw: Draw) -> Tensor:
        """Return x at `t_next` from `x_t`."""
        ...
