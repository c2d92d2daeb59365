"""The noise and the self-conditioning mask of a training step."""

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
    """Check that the strength is at least 0.

    Raises:
        ValueError: the strength is negative.
    """
    if not strength >= 0.0:
        raise ValueError(f"offset_noise_strength is {strength}; it must be at least 0")


def random_self_cond_mask(batch_size: int, generator: torch.Generator | None = None) -> Tensor:
    """Return which images of a batch get a self-conditioning estimate, bool (B,) on the host: half of them.

    Exactly one of each two neighbours, so that even parts of equal size compute equally many estimates. The last image
    of an odd batch gets one with probability 1/2. With a generator on a device, the host waits for the device.
    """
    device = torch.device("cpu") if generator is None else generator.device
    first = torch.rand((batch_size + 1) // 2, generator=generator, device=device).cpu() < 0.5
    return torch.stack((first, ~first), dim=1).flatten()[:batch_size]


def require_scipy() -> None:
    """Check before the first training step that `assign_noise` can import SciPy.

    Raises:
        ValueError: SciPy is not installed.
    """
    try:
        import scipy.optimize  # noqa: F401
    except ImportError:
        raise ValueError("immiscible is True, which needs SciPy: install it with `pip install scipy`") from None


def assign_noise(images: Tensor, noise: Tensor) -> Tensor:
    """Return the permutation p, int64 (B,), that minimises sum |images[i] - noise[p[i]]| (Kuhn 1955).

    Immiscible diffusion (Li et al. 2024, https://arxiv.org/abs/2406.12303) assigns the noise of a batch to its nearest
    images. The set of noise does not change. The network need not learn to map every image to every noise.
    Use the same permutation for x_t and for the target.
    """
    from scipy.optimize import linear_sum_assignment

    distances = torch.cdist(images.flatten(1).float(), noise.flatten(1).float())
    _, columns = linear_sum_assignment(distances.cpu().numpy())
    return torch.from_numpy(columns).to(images.device)
