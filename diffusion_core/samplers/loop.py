"""The one loop that drives all samplers, and the network as they see it."""

from collections.abc import Iterator

import torch
from torch import Tensor

from diffusion_core.samplers.protocols import Conditioning, DenoiserLike, Prediction, Randn, Sampler, ScheduleLike


class Trajectory:
    """Gives predictions along one trajectory; feeds the previous x0-hat back to a self-conditioned network.

    Args:
        denoiser: gives the predictions.
        classes: labels, (B,), or None.
        x_self_cond: the x0-hat that the first call feeds back, or None.
    """

    def __init__(self, denoiser: DenoiserLike, classes: Tensor | None, x_self_cond: Tensor | None = None) -> None:
        self.previous: tuple[float, Tensor] | None = None
        self._denoiser = denoiser
        self._conditioning = Conditioning(classes, x_self_cond)

    def __call__(self, x_t: Tensor, t: float) -> Prediction:
        prediction = self._denoiser(x_t, t, self._conditioning)
        self.previous = (t, prediction.x0)
        if self._denoiser.self_condition:
            self._conditioning = self._conditioning._replace(x_self_cond=prediction.x0)
        return prediction


def sample_loop(
    schedule: ScheduleLike,
    denoiser: DenoiserLike,
    sampler: Sampler,
    x_t: Tensor,
    *,
    classes: Tensor | None = None,
    randn: Randn = torch.randn_like,
) -> Iterator[Tensor]:
    """Yield x after each transition, the clean image in [-1, 1] last.

    Args:
        schedule: of the noise.
        denoiser: gives x0-hat; guided where it is a `GuidedDenoiser`.
        sampler: the way from noise to image.
        x_t: standard normal noise, (B, C, H, W).
        classes: labels, (B,), int64, for a class-conditional network.
        randn: source of the noise that the sampler adds on the way.

    Raises:
        ValueError: guidance without classes, or the sampler does not fit the schedule.
    """
    denoise = Trajectory(denoiser, classes)
    for t, t_next in sampler.transitions(schedule):
        x_t = sampler.step(schedule, denoise, x_t, t, t_next, randn)
        yield x_t
