"""Diffusion models: networks, processes, samplers and a trainer, with PyTorch alone."""

from diffusion_core.networks.unet import Unet
from diffusion_core.process.gaussian_diffusion import GaussianDiffusion
from diffusion_core.process.learned_gaussian_diffusion import LearnedGaussianDiffusion
from diffusion_core.runtime.allocator import keep_freed_memory
from diffusion_core.samplers.ddim import DDIM
from diffusion_core.samplers.ddpm import DDPM
from diffusion_core.samplers.dpm_solver import DPMSolver
from diffusion_core.samplers.guidance import Guidance
from diffusion_core.samplers.heun import Heun
from diffusion_core.samplers.noise import ImageNoise
from diffusion_core.training.data import TensorData
from diffusion_core.training.ema import EMA
from diffusion_core.training.trainer import Trainer

__all__ = [
    "DDIM",
    "DDPM",
    "EMA",
    "DPMSolver",
    "GaussianDiffusion",
    "Guidance",
    "Heun",
    "ImageNoise",
    "LearnedGaussianDiffusion",
    "TensorData",
    "Trainer",
    "Unet",
    "keep_freed_memory",
]
