"""How a model was sampled when the gate judged it, and how it is sampled where that is not known."""

from dataclasses import dataclass

from diffusion_core.samplers import SamplerChoice
from diffusion_core.samplers.ddim import DDIM
from diffusion_core.samplers.guidance import Guidance


@dataclass(frozen=True)
class Sampling:
    """How images are sampled.

    Attributes:
        sampler: the sampler.
        guidance: classifier-free guidance.
    """

    sampler: SamplerChoice
    guidance: Guidance = Guidance()  # noqa: RUF009 - frozen


def usual_sampling(timesteps: int) -> Sampling:
    """Return the sampling of a model for which none is recorded."""
    return Sampling(DDIM(steps=min(50, timesteps)))
