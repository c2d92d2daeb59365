"""Classifier-free guidance, Ho & Salimans 2022 (https://arxiv.org/abs/2207.12598), with two later corrections.

    x0 = x0(null) + scale (x0(label) - x0(null))

Predictions are combined in x0-space. The conversions between the objectives are affine, so combining the network's
outputs gives the same result.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_core.choices import Options
from diffusion_core.samplers.protocols import Conditioning, DenoiserLike, Prediction, batch_times


@dataclass(frozen=True)
class Guidance(Options):
    """The strength of classifier-free guidance.

    Attributes:
        scale: at least 0; 1 for none, 0 for unconditional samples. Above 1, samples are more typical of their class and
            less diverse.
        rescale: phi in [0, 1] of Lin et al. 2023 (https://arxiv.org/abs/2305.08891), equation 16, applied to x0 instead
            of the network's output. It moves each image's standard deviation towards that without guidance, which
            reduces over-exposure.
        interval: the noise levels (least, greatest], as sigma = sqrt(1/abar - 1), with guidance; all if None. Guidance
            at other levels lowers quality and costs a second prediction (Kynkaanniemi et al. 2024,
            https://arxiv.org/abs/2404.07724).
    """

    scale: float = 1.0
    rescale: float = 0.0
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.scale < math.inf:
            raise ValueError(f"guidance.scale is {self.scale}; it must be at least 0, and 1 disables guidance")
        if not 0.0 <= self.rescale <= 1.0:
            raise ValueError(f"guidance.rescale is {self.rescale}; it must lie in [0, 1]")
        if self.interval is not None and not (len(self.interval) == 2 and 0.0 <= self.interval[0] < self.interval[1]):
            raise ValueError(
                f"guidance.interval is {tuple(self.interval)}; it must be two rising noise levels, the first at least 0"
            )

    @property
    def predictions(self) -> tuple[int, ...]:
        """The numbers of predictions per image that one network evaluation computes: (1,), (2,) or (1, 2)."""
        if self.scale in (0.0, 1.0):
            return (1,)
        return (2,) if self.interval is None else (1, 2)

    def acts_at(self, alpha_bar: float) -> bool:
        """Whether the prediction for the null class is needed at this noise level."""
        if self.scale == 1.0 or self.interval is None:
            return self.scale != 1.0
        sigma = math.sqrt(1.0 / alpha_bar - 1.0) if alpha_bar > 0.0 else math.inf
        return self.interval[0] < sigma <= self.interval[1]

    def blend(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """Return the guided x0-hat, (B, C, H, W)."""
        guided = unconditional + self.scale * (conditional - unconditional)
        if self.rescale == 0.0:
            return guided
        dims = tuple(range(1, guided.ndim))
        wanted, found = (each.std(dims, correction=0, keepdim=True) for each in (conditional, guided))
        # A constant image has a standard deviation of 0 and stays as it is.
        ratio = torch.where(found > 0.0, wanted / found, 1.0)
        return guided * (self.rescale * ratio + 1.0 - self.rescale)


class GuidedDenoiser:
    """A denoiser that combines another denoiser's predictions for the label and for the null class.

    x0-hat is clipped after guidance. A learned variance is that of the prediction for the label.

    Args:
        denoiser: computes the predictions.
        guidance: the strength of guidance.

    Raises:
        ValueError: `guidance` is not a `Guidance`.
    """

    def __init__(self, denoiser: DenoiserLike, guidance: Guidance) -> None:
        if not isinstance(guidance, Guidance):
            raise ValueError(f"guidance is {guidance!r}; it must be a Guidance, Guidance(scale=2.0) say")
        self.self_condition = denoiser.self_condition
        self.num_classes = denoiser.num_classes
        self._denoiser = denoiser
        self.schedule = denoiser.schedule
        self._guidance = guidance

    def __call__(self, x_t: Tensor, t: float, conditioning: Conditioning, *, clip: bool = True) -> Prediction:
        """Return the guided prediction of a batch at timestep t.

        Raises:
            ValueError: there is guidance without classes.
        """
        classes, x_self_cond = conditioning
        scale = self._guidance.scale
        if scale != 1.0 and classes is None:
            raise ValueError(f"guidance.scale is {scale}; guidance needs classes, so it must be 1 without them")
        if classes is None or not self._guidance.acts_at(self.schedule.alpha_bar(t)):
            return self._denoiser(x_t, t, conditioning, clip=clip)
        null_class = torch.full_like(classes, self.num_classes or 0)
        if scale == 0.0:
            return self._denoiser(x_t, t, Conditioning(null_class, x_self_cond), clip=clip)
        both = self._denoiser(
            torch.cat((x_t, x_t)),
            t,
            Conditioning(
                torch.cat((classes, null_class)), None if x_self_cond is None else torch.cat((x_self_cond, x_self_cond))
            ),
            clip=False,
        )
        x0 = self._guidance.blend(*both.x0.chunk(2))
        x0 = x0.clamp(-1.0, 1.0) if clip else x0
        variance = None if both.variance is None else both.variance[: len(x_t)]
        return Prediction(x0, self.schedule.noise_from_x0(x_t, batch_times(t, x_t), x0), variance)
