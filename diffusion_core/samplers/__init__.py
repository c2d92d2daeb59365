"""From noise to images: samplers, one a file; guidance; and the loop that drives them.

A new sampler is a new file beside its siblings, listed in `SamplerChoice`.
"""

from diffusion_core.samplers.ddim import DDIM
from diffusion_core.samplers.ddpm import DDPM
from diffusion_core.samplers.dpm_solver import DPMSolver
from diffusion_core.samplers.heun import Heun

SamplerChoice = DDPM | DDIM | DPMSolver | Heun
