"""Diffusion models: networks, processes, samplers and a trainer. The only dependency is PyTorch.

The first use of a name imports its module and PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusion_core.networks.unet import Unet as Unet
    from diffusion_core.process.gaussian_diffusion import GaussianDiffusion as GaussianDiffusion
    from diffusion_core.process.learned_gaussian_diffusion import LearnedGaussianDiffusion as LearnedGaussianDiffusion
    from diffusion_core.process.noise_schedule import NoiseSchedule as NoiseSchedule
    from diffusion_core.runtime.allocator import keep_freed_memory as keep_freed_memory
    from diffusion_core.samplers.ddim import DDIM as DDIM
    from diffusion_core.samplers.ddpm import DDPM as DDPM
    from diffusion_core.samplers.dpm_solver import DPMSolver as DPMSolver
    from diffusion_core.samplers.guidance import Guidance as Guidance
    from diffusion_core.samplers.heun import Heun as Heun
    from diffusion_core.samplers.noise import ImageNoise as ImageNoise
    from diffusion_core.training.data import TensorData as TensorData
    from diffusion_core.training.ema import EMA as EMA
    from diffusion_core.training.trainer import Trainer as Trainer

_MODULES = {
    "DDIM": "samplers.ddim",
    "DDPM": "samplers.ddpm",
    "EMA": "training.ema",
    "DPMSolver": "samplers.dpm_solver",
    "GaussianDiffusion": "process.gaussian_diffusion",
    "Guidance": "samplers.guidance",
    "Heun": "samplers.heun",
    "ImageNoise": "samplers.noise",
    "LearnedGaussianDiffusion": "process.learned_gaussian_diffusion",
    "NoiseSchedule": "process.noise_schedule",
    "TensorData": "training.data",
    "Trainer": "training.trainer",
    "Unet": "networks.unet",
    "keep_freed_memory": "runtime.allocator",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
