"""What chance decides in a training step, besides the timesteps."""

import torch
from torch import Tensor


def with_offset(noise: Tensor, strength: float, generator: torch.Generator | None = None) -> Tensor:
    """Return noise, (B, C, H, W), plus `strength` times a draw that all pixels of a channel share.

    Raises:
        ValueError: the strength is negative.
    """
    check_offset(strength)
    if strength == 0.0:
        return noise
    shape = (*noise.shape[:2], 1, 1)
    return noise + strength * torch.randn(shape, generator=generator, device=noise.device, dtype=noise.dtype)


def check_offset(strength: float) -> None:
    """Refuse a strength that is negative."""
    if not strength >= 0.0:
        raise ValueError(f"offset_noise_strength is {strength}; it must be at least 0")


def random_half(batch_size: int, generator: torch.Generator | None = None) -> Tensor:
    """Return which images of a batch get a first guess, bool (B,) on the host.

    One of each two neighbours, so that every even part of a batch makes as many guesses as another of its size; a coin
    decides on what an odd batch leaves over. Where `generator` is a device's, that device is waited for.
    """
    device = torch.device("cpu") if generator is None else generator.device
    first = torch.rand((batch_size + 1) // 2, generator=generator, device=device).cpu() < 0.5
    return torch.stack((first, ~first), dim=1).flatten()[:batch_size]
