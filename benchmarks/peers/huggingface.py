"""diffusers: its example of unconditional training, without reading files."""

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor

from benchmarks.peers import Setting, to_uint8


class Task:
    """AdamW, clipping and EMA as in the example; attention at the innermost level, as in the other networks.

    It has two layers per level. With three or more levels the last is narrower, so that the numbers of parameters
    differ by at most 8%.
    """

    def __init__(self, setting: Setting) -> None:
        torch.manual_seed(0)
        widths = [setting.dim * mult for mult in setting.dim_mults]
        if len(widths) >= 3:
            widths[-1] = widths[-1] * 3 // 4
        levels = len(widths)
        self.network = UNet2DModel(
            sample_size=setting.size,
            in_channels=setting.channels,
            out_channels=setting.channels,
            layers_per_block=2,
            block_out_channels=tuple(widths),
            down_block_types=("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
        ).to(setting.device)
        self.setting = setting
        self.noising = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=setting.learning_rate or 1e-4, betas=(0.95, 0.999), weight_decay=1e-6
        )
        self.ema = EMAModel(self.network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4)
        self.images = setting.data()

    def train_step(self) -> None:
        """Take one training step."""
        which = torch.randint(0, len(self.images), (self.setting.batch,))
        images = (self.images[which].float() / 127.5 - 1.0).to(self.setting.device)
        noise = torch.randn_like(images)
        t = torch.randint(0, 1000, (len(images),), device=images.device)
        noisy = self.noising.add_noise(images, noise, t)
        loss = torch.nn.functional.mse_loss(self.network(noisy, t).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.network.parameters())
        loss.item()

    @torch.inference_mode()
    def sample(self, count: int, steps: int) -> Tensor:
        """Return images by DDIM, uint8 (count, C, H, W)."""
        self.ema.store(self.network.parameters())
        self.ema.copy_to(self.network.parameters())
        self.network.eval()
        walk = DDIMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        walk.set_timesteps(steps)
        x = torch.randn(count, self.setting.channels, self.setting.size, self.setting.size, device=self.setting.device)
        for t in walk.timesteps:
            x = walk.step(self.network(x, t).sample, t, x).prev_sample
        self.network.train()
        self.ema.restore(self.network.parameters())
        return to_uint8((x + 1.0) / 2.0)
