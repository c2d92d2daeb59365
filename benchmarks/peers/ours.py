"""This project, with what it does by itself."""

import torch
from torch import Tensor

from benchmarks.peers import Setting, to_uint8
from diffusion_core import DDIM, GaussianDiffusion, ImageNoise, TensorData, Trainer, Unet, keep_freed_memory


class Task:
    """The library's own trainer; samples are drawn from its EMA in the precision that it chose."""

    def __init__(self, setting: Setting) -> None:
        if setting.device.type == "cpu":
            keep_freed_memory()
        torch.manual_seed(0)
        network = Unet(**setting.network)
        # What docs/diffusion.md found to have the least distance on the digits.
        diffusion = GaussianDiffusion(
            network, image_size=setting.size, objective="pred_x0", min_snr_loss_weight=True
        ).to(setting.device)
        self.trainer = Trainer(
            diffusion,
            TensorData(setting.data().to(setting.device)),
            images=10**9,
            batch_size=setting.batch,
            learning_rate=setting.learning_rate or 3e-4,
            ema_halflife_images=5000,
            compiled=setting.device.type == "cuda",
        )
        self._steps = self.trainer.steps()
        self._drawn = 0

    def train_step(self) -> None:
        """Take one step of training."""
        next(self._steps)

    def sample(self, count: int, steps: int) -> Tensor:
        """Return images by DDIM."""
        precision = self.trainer.precision.dtype
        diffusion = self.trainer.ema.module
        noise = ImageNoise(0, range(self._drawn, self._drawn + count))
        self._drawn += count
        with torch.autocast(diffusion.device.type, precision, enabled=precision != torch.float32):
            images = diffusion.sample(count, sampler=DDIM(steps=steps), draw=noise)
        return to_uint8(images)
