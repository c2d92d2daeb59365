"""This project, with its defaults."""

import os
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.peak import step_flop
from benchmarks.peers import Setting, to_uint8
from diffusion_core import DDIM, GaussianDiffusion, ImageNoise, TensorData, Trainer, Unet, keep_freed_memory
from diffusion_core.runtime.compilation import compile_for_sampling, compiler_problem
from diffusion_core.runtime.compile_cache import use_compile_cache

# The variable of the compile cache's folder; PyTorch's own folder if it is not set.
COMPILE_CACHE = "BENCH_COMPILE_CACHE"
FLOP_IMAGES = 2


class Task:
    """Uses the library's trainer; samples from its EMA as in the stage `sample`."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._on_gpu = setting.device.type == "cuda"
        if not self._on_gpu:
            keep_freed_memory()
        if folder := os.environ.get(COMPILE_CACHE):
            use_compile_cache(Path(folder), setting.device)
        torch.manual_seed(0)
        diffusion = self._new_diffusion()
        self.timesteps = diffusion.num_timesteps
        self.trainer = Trainer(
            diffusion,
            TensorData(setting.data().to(setting.device)),
            images=10**9,
            batch_size=setting.batch,
            learning_rate=setting.learning_rate or 3e-4,
            ema_halflife_images=setting.ema_halflife_images,
            compiled=self._on_gpu,
        )
        self._steps = self.trainer.steps()
        self._drawn = 0
        self._sampled: GaussianDiffusion | None = None
        self._sampled_step = -1

    def train_step(self) -> None:
        """Take one training step."""
        next(self._steps)

    def sample(self, count: int, steps: int) -> Tensor:
        """Return images by DDIM, uint8 (count, C, H, W)."""
        noise = ImageNoise(0, range(self._drawn, self._drawn + count))
        self._drawn += count
        diffusion = self._average()
        with self._autocast():
            images = diffusion.sample(count, sampler=DDIM(steps=steps), randn=noise)
        return to_uint8(images)

    def predict_noise(self, images: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return the noise that the EMA predicts for images in [0, 1], noised to t with `noise`."""
        diffusion = self._average()
        with torch.inference_mode(), self._autocast():
            x_t = diffusion.q_sample(diffusion.normalize(images), t, noise)
            return diffusion.model_predictions(x_t, t).pred_noise

    def flop_per_image(self) -> float:
        """Return the floating-point operations of a training step per image."""
        # A new network, because the operations of the trainer's compiled network cannot be counted.
        diffusion = self._new_diffusion()
        images = self.setting.data()[:FLOP_IMAGES].to(self.setting.device).float() / 255.0
        with self._autocast():
            return step_flop(diffusion, images) / FLOP_IMAGES

    def _new_diffusion(self) -> GaussianDiffusion:
        setting = self.setting
        diffusion = GaussianDiffusion(Unet(**setting.network), image_size=setting.size, **setting.process)
        return diffusion.to(setting.device)

    def _average(self) -> GaussianDiffusion:
        """Return the process with the EMA weights, compiled on a GPU as in the stage `sample`."""
        if not self._on_gpu:
            return self.trainer.ema.module
        if self._sampled is None:
            self._sampled = self._new_diffusion().eval().requires_grad_(False)
            if compiler_problem(self.setting.device) is None:
                compile_for_sampling(self._sampled.model)
        if self._sampled_step != self.trainer.step:
            # Into the same memory, which CUDA graphs read.
            self._sampled.load_state_dict(self.trainer.ema.module.state_dict())
            self._sampled_step = self.trainer.step
        return self._sampled

    def _autocast(self) -> torch.autocast:
        precision = self.trainer.precision.dtype
        return torch.autocast(self.setting.device.type, precision, enabled=precision != torch.float32)
