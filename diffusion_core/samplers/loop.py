"""The sampling loop of all samplers, and the denoiser that it passes to them."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from diffusion_core.samplers.protocols import Conditioning, DenoiserLike, Prediction, Randn, Sampler


class Trajectory:
    """Predictions along one trajectory; passes the previous x0-hat to a self-conditioned network.

    Args:
        denoiser: computes the predictions.
        classes: labels, int64 (B,), or None.
        x_self_cond: the x0-hat that the first call passes, (B, C, H, W), or None.

    Attributes:
        previous: see `Denoise`.
    """

    def __init__(self, denoiser: DenoiserLike, classes: Tensor | None, x_self_cond: Tensor | None = None) -> None:
        self.previous: tuple[float, Tensor] | None = None
        self._denoiser = denoiser
        self._conditioning = Conditioning(classes, x_self_cond)

    def __call__(self, x_t: Tensor, t: float) -> Prediction:
        """Return the prediction at (x_t, t) and keep its x0-hat for the next call."""
        prediction = self._denoiser(x_t, t, self._conditioning)
        self.previous = (t, prediction.x0)
        if self._denoiser.self_condition:
            self._conditioning = self._conditioning._replace(x_self_cond=prediction.x0)
        return prediction


def sample_loop(
    denoiser: DenoiserLike,
    sampler: Sampler,
    x_t: Tensor,
    *,
    classes: Tensor | None = None,
    randn: Randn = torch.randn_like,
    begin: float = math.inf,
) -> Iterator[Tensor]:
    """Yield x after each transition, the clean image in [-1, 1] last.

    Args:
        denoiser: computes the predictions; a `GuidedDenoiser` for guidance.
        sampler: the sampler.
        x_t: standard normal noise, (B, C, H, W), or noised images at the first t that is at most `begin`.
        classes: labels, int64 (B,), for a class-conditional network.
        randn: source of the noise that the sampler adds.
        begin: transitions from a greater t are left out.

    Raises:
        ValueError: there is guidance without classes, or the sampler does not fit the schedule.
    """
    denoise = Trajectory(denoiser, classes)
    for t, t_next in sampler.transitions(denoiser.schedule):
        if t > begin:
            continue
        x_t = sampler.step(denoiser.schedule, denoise, x_t, t, t_next, randn)
        yield x_t
