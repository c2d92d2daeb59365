"""The numbers of a schedule, computed once in float64 and gathered by timestep."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Size, Tensor

from diffusion_core.process.zero_terminal_snr import rescale_to_zero_terminal_snr

# Stands for an alpha_bar of 0 where one divides by it: large enough a quotient to leave x_t alone in the limit.
LEAST_ALPHA_BAR = 1e-20


@dataclass(frozen=True)
class Tables:
    """Tables by timestep, each float64 of shape (T,), with the usual names; a_t = 1 - b_t, abar_{-1} = 1."""

    betas: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    log_one_minus_alphas_cumprod: Tensor
    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    posterior_variance: Tensor
    posterior_log_variance_clipped: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor

    @classmethod
    def of(cls, betas: Tensor, zero_terminal_snr: bool = False) -> "Tables":
        """Derive all tables from the betas.

        Args:
            betas: float64, (T,).
            zero_terminal_snr: rescale them so that nothing of the image is left at T - 1.

        Raises:
            ValueError: a beta lies outside [0, 1), or the first is 0, and the process would divide by zero.
        """
        if not bool(((betas >= 0.0) & (betas < 1.0)).all() and betas[0] > 0.0):
            raise ValueError(
                f"beta_schedule begins with {float(betas[0]):.4g} and has betas from {float(betas.min()):.4g} to"
                f" {float(betas.max()):.4g}; each must lie in [0, 1) and the first above 0: change its options"
            )
        if zero_terminal_snr:
            betas = rescale_to_zero_terminal_snr(betas)
        alphas = 1.0 - betas
        alpha_bar = torch.cumprod(alphas, dim=0)
        divisor = alpha_bar.clamp(min=LEAST_ALPHA_BAR)
        previous = F.pad(alpha_bar[:-1], (1, 0), value=1.0)
        variance = betas * (1.0 - previous) / (1.0 - alpha_bar)
        return cls(
            betas=betas,
            alphas_cumprod=alpha_bar,
            alphas_cumprod_prev=previous,
            sqrt_alphas_cumprod=alpha_bar.sqrt(),
            sqrt_one_minus_alphas_cumprod=(1.0 - alpha_bar).sqrt(),
            log_one_minus_alphas_cumprod=(1.0 - alpha_bar).log(),
            sqrt_recip_alphas_cumprod=(1.0 / divisor).sqrt(),
            sqrt_recipm1_alphas_cumprod=(1.0 / divisor - 1.0).sqrt(),
            posterior_variance=variance,
            # The variance is 0 at t = 0, where no noise is added.
            posterior_log_variance_clipped=variance.clamp(min=1e-20).log(),
            posterior_mean_coef1=betas * previous.sqrt() / (1.0 - alpha_bar),
            posterior_mean_coef2=(1.0 - previous) * alphas.sqrt() / (1.0 - alpha_bar),
        )

    @property
    def snr(self) -> Tensor:
        """abar / (1 - abar)."""
        return self.alphas_cumprod / (1.0 - self.alphas_cumprod)

    @property
    def log_sigma(self) -> Tensor:
        """The logarithm of the noise level sqrt(1/abar - 1), which is at most 1e10."""
        return self.sqrt_recipm1_alphas_cumprod.log()

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each table with its name."""
        return ((field.name, getattr(self, field.name)) for field in fields(self))


def extract(table: Tensor, t: Tensor, shape: Size) -> Tensor:
    """Gather a table at timesteps t, (B,), shaped to broadcast against a batch of that shape: (B, 1, 1, 1)."""
    return table[t].reshape(len(t), *(1 for _ in shape[1:]))
