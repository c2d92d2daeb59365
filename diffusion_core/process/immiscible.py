"""Immiscible noise, Li et al. 2024 (https://arxiv.org/abs/2406.12303): each image of a batch gets the nearest noise.

The batch's noise is as it was, only handed out otherwise, so that the network need not learn to map every image to
every noise. What it is trained on is the noise that its image got: the same permutation holds for x_t and target.
"""

import torch
from torch import Tensor


def require_scipy() -> None:
    """Find out at the start, and not in the first step.

    Raises:
        ValueError: SciPy is not installed.
    """
    try:
        import scipy.optimize  # noqa: F401
    except ImportError:
        raise ValueError("immiscible is True, which needs SciPy: install it with `pip install scipy`") from None


def assign_noise(images: Tensor, noise: Tensor) -> Tensor:
    """Return the permutation, int64 (B,), that makes sum |images[i] - noise[p[i]]| least (Kuhn 1955)."""
    from scipy.optimize import linear_sum_assignment

    distances = torch.cdist(images.flatten(1).float(), noise.flatten(1).float())
    _, columns = linear_sum_assignment(distances.cpu().numpy())
    return torch.from_numpy(columns).to(images.device)
