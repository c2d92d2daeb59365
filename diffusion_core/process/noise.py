"""The noise of a training step, and which of its images are self-conditioned."""

import torch
from torch import Tensor


def with_offset(noise: Tensor, strength: float, generator: torch.Generator | None = None) -> Tensor:
    """Return noise, (B, C, H, W), plus `strength` times standard normal noise that all pixels of a channel share.

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


def random_self_cond_mask(batch_size: int, generator: torch.Generator | None = None) -> Tensor:
    """Return which images of a batch get a self-conditioning estimate, bool (B,) on the host: half of them.

    One of each two neighbours, so that every even part of a batch makes as many estimates as another of its size; a
    fair coin decides for the last image of an odd batch. Where `generator` is a device's, the host waits for it.
    """
    device = torch.device("cpu") if generator is None else generator.device
    first = torch.rand((batch_size + 1) // 2, generator=generator, device=device).cpu() < 0.5
    return torch.stack((first, ~first), dim=1).flatten()[:batch_size]


def require_scipy() -> None:
    """Find out at the start, and not in the first step, whether `assign_noise` can work.

    Raises:
        ValueError: SciPy is not installed.
    """
    try:
        import scipy.optimize  # noqa: F401
    except ImportError:
        raise ValueError("immiscible is True, which needs SciPy: install it with `pip install scipy`") from None


def assign_noise(images: Tensor, noise: Tensor) -> Tensor:
    """Return the permutation p, int64 (B,), that makes sum |images[i] - noise[p[i]]| least (Kuhn 1955).

    Immiscible noise (Li et al. 2024, https://arxiv.org/abs/2406.12303) gives each image of a batch the nearest noise.
    The batch's noise is as it was, only assigned otherwise, so that the network need not learn to map every image to
    every noise. The same permutation holds for x_t and for the target.
    """
    from scipy.optimize import linear_sum_assignment

    distances = torch.cdist(images.flatten(1).float(), noise.flatten(1).float())
    _, columns = linear_sum_assignment(distances.cpu().numpy())
    return torch.from_numpy(columns).to(images.device)
