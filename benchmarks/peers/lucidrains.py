"""denoising-diffusion-pytorch: the loop body of its Trainer, without reading files."""

import torch
from denoising_diffusion_pytorch import GaussianDiffusion, Unet
from ema_pytorch import EMA
from torch import Tensor

from benchmarks.peers import Setting, to_uint8


class Task:
    """Adam, clipping, EMA every ten steps and the loss read at each step, as in its Trainer."""

    def __init__(self, setting: Setting) -> None:
        torch.manual_seed(0)
        network = Unet(**setting.network)
        self.diffusion = GaussianDiffusion(network, image_size=setting.size, timesteps=1000, sampling_timesteps=50).to(
            setting.device
        )
        self.setting = setting
        self.timesteps = self.diffusion.num_timesteps
        self.optimizer = torch.optim.Adam(
            self.diffusion.parameters(), lr=setting.learning_rate or 1e-4, betas=(0.9, 0.99)
        )
        self.ema = EMA(self.diffusion, beta=0.995, update_every=10).to(setting.device)
        self.scaler = torch.amp.GradScaler(enabled=setting.amp)
        self.images = setting.data()

    def train_step(self) -> None:
        """Take one training step."""
        which = torch.randint(0, len(self.images), (self.setting.batch,))
        images = (self.images[which].float() / 255.0).to(self.setting.device)
        # The mixed precision of its Trainer is Accelerate's float16.
        with torch.autocast(self.setting.device.type, torch.float16, enabled=self.setting.amp):
            loss = self.diffusion(images)
        self.scaler.scale(loss).backward()
        loss.item()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.diffusion.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.ema.update()

    def sample(self, count: int, steps: int) -> Tensor:
        """Return images by DDIM, uint8 (count, C, H, W)."""
        self.ema.ema_model.eval()
        self.ema.ema_model.sampling_timesteps = steps
        with torch.inference_mode():
            return to_uint8(self.ema.ema_model.sample(batch_size=count))

    @torch.inference_mode()
    def predict_noise(self, images: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return the noise that the EMA predicts for images in [0, 1], noised to t with `noise`."""
        diffusion = self.ema.ema_model.eval()
        x_t = diffusion.q_sample(diffusion.normalize(images), t, noise)
        return diffusion.model_predictions(x_t, t).pred_noise
