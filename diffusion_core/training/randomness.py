"""The random numbers of a step, sampled for the global batch and so independent of sharding."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from diffusion_core.process.gaussian_diffusion import GaussianDiffusion
from diffusion_core.process.noise import random_self_cond_mask, with_offset
from diffusion_core.randomness import generator


@dataclass(frozen=True)
class StepRandomness:
    """The random numbers of a batch or a part of it.

    The noise is on the device. The others are on the host, so that reading them needs no synchronisation.

    Attributes:
        start: index of the part's first image in the batch.
        times: timesteps, int64 (B,).
        noise: (B, C, H, W), including offset noise.
        self_cond_mask: which images get a self-conditioning estimate, bool (B,).
        unlabelled: which labels are replaced by the null class, bool (B,).
        flipped: which images are mirrored, bool (B,).
    """

    start: int
    times: Tensor
    noise: Tensor
    self_cond_mask: Tensor
    unlabelled: Tensor
    flipped: Tensor

    @classmethod
    def of(cls, diffusion: GaussianDiffusion, batch_size: int, seed: int, step: int) -> Self:
        """Return the random numbers of a step, a function of (seed, step)."""
        # The name of the stream; another name would give other random numbers.
        small = generator(seed, step, "draws")
        of_noise = generator(seed, step, "noise", device=diffusion.device)
        shape = (batch_size, diffusion.channels, *diffusion.image_size)
        noise = torch.randn(shape, generator=of_noise, device=diffusion.device)
        return cls(
            start=0,
            times=torch.randint(0, diffusion.num_timesteps, (batch_size,), generator=small),
            noise=with_offset(noise, diffusion.offset_noise_strength, of_noise),
            self_cond_mask=random_self_cond_mask(batch_size, small),
            unlabelled=torch.rand(batch_size, generator=small) < diffusion.cond_drop_prob,
            flipped=torch.rand(batch_size, generator=small) < 0.5,
        )

    def part(self, images: range) -> Self:
        """Return the random numbers of the images of a part."""
        cut = slice(images.start, images.stop)
        tensors = (self.times, self.noise, self.self_cond_mask, self.unlabelled, self.flipped)
        return type(self)(self.start + images.start, *(each[cut] for each in tensors))
