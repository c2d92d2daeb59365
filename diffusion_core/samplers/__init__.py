"""Samplers, one per file; guidance; and the sampling loop.

To add a sampler, add a file here and list its class in `SamplerChoice`.
"""

from diffusion_core.samplers.ddim import DDIM
from diffusion_core.samplers.ddpm import DDPM
from diffusion_core.samplers.dpm_solver import DPMSolver
from diffusion_core.samplers.heun import Heun

SamplerChoice = DDPM | DDIM | DPMSolver | Heun
