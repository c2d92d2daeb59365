"""From noise to images: the protocol of a sampler, and the one loop that drives them all.

A sampler is one file with a frozen dataclass. It asks the loop's denoiser for x0-hat and the noise that goes with it,
and never learns which objective trained the network, whether the guess before is fed back (self-conditioning) or
whether two guesses are blended (guidance).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

# Gives standard normal noise shaped like its argument.
Draw = Callable[[Tensor], Tensor]


class ModelPrediction(NamedTuple):
    """The network's opinion at (x_t, t): the noise and the clean image, both (B, C, H, W)."""

    pred_noise: Tensor
    pred_x_start: Tensor


class Process(Protocol):
    """What a sampler may know of the diffusion process."""

    num_timesteps: int
    self_condition: bool
    num_classes: int | None

    def alpha_bar(self, t: int) -> float:
        """Return abar_t in float64; 1 at t = -1, the clean image."""
        ...

    def model_predictions(
        self,
        x: Tensor,
        t: Tensor,
        x_self_cond: Tensor | None = None,
        clip_x_start: bool = False,
        rederive_pred_noise: bool = False,
        *,
        classes: Tensor | None = None,
    ) -> ModelPrediction:
        """Run the network and convert its output."""
        ...

    def predict_noise_from_start(self, x_t: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        """Return the noise that leads from x0 to x_t."""
        ...


Denoise = Callable[[Tensor, int], ModelPrediction]


class Sampler(Protocol):
    """A way from x_T to x_0."""

    @property
    def kind(self) -> str:
        """The name it is chosen by."""
        ...

    def transitions(self, timesteps: int) -> Sequence[tuple[int, int]]:
        """Return the pairs (t, t_next), falling; the last t_next is -1, the clean image.

        Raises:
            ValueError: the sampler cannot walk a schedule of that many timesteps.
        """
        ...

    def step(self, process: Process, denoise: Denoise, x_t: Tensor, t: int, t_next: int, draw: Draw) -> Tensor:
        """Return x at `t_next` from `x_t`."""
        ...


class Denoiser:
    """The network as samplers see it: clipped x0-hat, guided, with the previous x0-hat fed back.

    Guidance blends in x0 (Ho & Salimans 2022): every conversion between the objectives is affine, so this equals the
    blend of the outputs, and the clipping that follows acts on the image that is used.
    """

    def __init__(self, process: Process, classes: Tensor | None, guidance_scale: float) -> None:
        self._process = process
        self._classes = classes
        self._scale = guidance_scale
        self._previous: Tensor | None = None

    def __call__(self, x_t: Tensor, t: int) -> ModelPrediction:
        times = torch.full((len(x_t),), t, device=x_t.device, dtype=torch.long)
        if self._scale == 1.0:
            prediction = self._process.model_predictions(
                x_t, times, self._previous, clip_x_start=True, rederive_pred_noise=True, classes=self._classes
            )
        else:
            prediction = self._guided(x_t, times)
        if self._process.self_condition:
            self._previous = prediction.pred_x_start
        return prediction

    def _guided(self, x_t: Tensor, times: Tensor) -> ModelPrediction:
        assert self._classes is not None
        nobody = torch.full_like(self._classes, self._process.num_classes or 0)
        previous = None if self._previous is None else self._previous.repeat(2, 1, 1, 1)
        _, x0 = self._process.model_predictions(
            x_t.repeat(2, 1, 1, 1), times.repeat(2), previous, classes=torch.cat((self._classes, nobody))
        )
        conditional, unconditional = x0.chunk(2)
        guided = unconditional + self._scale * (conditional - unconditional)
        guided = guided.clamp(-1.0, 1.0)
        return ModelPrediction(self._process.predict_noise_from_start(x_t, times, guided), guided)


def sample_loop(
    process: Process,
    sampler: Sampler,
    x_t: Tensor,
    *,
    draw: Draw = torch.randn_like,
    classes: Tensor | None = None,
    guidance_scale: float = 1.0,
) -> Iterator[Tensor]:
    """Yield x after each transition, the clean image in [-1, 1] last.

    Args:
        process: the diffusion process and its network.
        sampler: the way from noise to image.
        x_t: standard normal noise, (B, C, H, W).
        draw: source of the noise that the sampler adds on the way.
        classes: labels, (B,), int64, for a class-conditional network.
        guidance_scale: 1 leaves the conditional prediction as it is; above 1 moves away from the unconditional one.

    Raises:
        ValueError: guidance without classes.
    """
    if guidance_scale != 1.0 and classes is None:
        raise ValueError(f"guidance_scale is {guidance_scale}; guidance needs classes, so it must be 1 without them")
    denoise = Denoiser(process, classes, guidance_scale)
    for t, t_next in sampler.transitions(process.num_timesteps):
        x_t = sampler.step(process, denoise, x_t, t, t_next, draw)
        yield x_t
