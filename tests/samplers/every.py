"""One sampler of each kind, so that a new one is tested with the others."""

from diffusion_core.choices import choices
from diffusion_core.samplers import SamplerChoice


def every_sampler(steps):
    return [sampler(steps=steps) for sampler in choices(SamplerChoice).values()]
