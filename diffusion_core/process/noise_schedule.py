"""The forward process: a schedule's tables, and the quantities computed from them without a network.

    q(x_t | x0) = N(sqrt(abar_t) x0, (1 - abar_t) I),     t = 0 .. T-1

Images are (B, C, H, W) and t is int64 (B,) throughout. Samplers that step in the noise level
sigma = sqrt(1/abar - 1) also use floating-point t; log sigma is interpolated between timesteps.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn

from diffusion_core.process.schedules import BetaSchedule, rescale_to_zero_terminal_snr
from diffusion_core.samplers.ddpm import posterior_coefficients

# Replaces an alpha_bar of 0 in divisions; the quotient is so large that the noise computed from x_t is x_t.
MIN_ALPHA_BAR = 1e-20


@dataclass(frozen=True)
class Coefficients:
    """The schedule's values at the timesteps of a batch, and the conversions between x0, noise and v.

        x_t   = sqrt(abar) x0 + sqrt(1 - abar) noise          (Ho et al. 2020, equation 4)
        v     = sqrt(abar) noise - sqrt(1 - abar) x0          (Salimans & Ho 2022)

    sqrt(1/abar) and sqrt(1/abar - 1) are tables of their own, as in the established implementations, so that float32
    rounding agrees.

    Attributes:
        sqrt_alpha_bar: sqrt(abar); this and the others broadcast against the images.
        sqrt_one_minus_alpha_bar: sqrt(1 - abar).
        sqrt_recip_alpha_bar: sqrt(1/abar).
        sqrt_recipm1_alpha_bar: sqrt(1/abar - 1).
    """

    sqrt_alpha_bar: Tensor
    sqrt_one_minus_alpha_bar: Tensor
    sqrt_recip_alpha_bar: Tensor
    sqrt_recipm1_alpha_bar: Tensor

    def x_t(self, x0: Tensor, noise: Tensor) -> Tensor:
        """Return sqrt(abar) x0 + sqrt(1 - abar) noise."""
        return self.sqrt_alpha_bar * x0 + self.sqrt_one_minus_alpha_bar * noise

    def v(self, x0: Tensor, noise: Tensor) -> Tensor:
        """Return sqrt(abar) noise - sqrt(1 - abar) x0."""
        return self.sqrt_alpha_bar * noise - self.sqrt_one_minus_alpha_bar * x0

    def noise_from_x0(self, x_t: Tensor, x0: Tensor) -> Tensor:
        """Return (sqrt(1/abar) x_t - x0) / sqrt(1/abar - 1)."""
        return (self.sqrt_recip_alpha_bar * x_t - x0) / self.sqrt_recipm1_alpha_bar

    def x0_from_noise(self, x_t: Tensor, noise: Tensor) -> Tensor:
        """Return sqrt(1/abar) x_t - sqrt(1/abar - 1) noise."""
        return self.sqrt_recip_alpha_bar * x_t - self.sqrt_recipm1_alpha_bar * noise

    def x0_from_v(self, x_t: Tensor, v: Tensor) -> Tensor:
        """Return sqrt(abar) x_t - sqrt(1 - abar) v."""
        return self.sqrt_alpha_bar * x_t - self.sqrt_one_minus_alpha_bar * v


class ExactTables(nn.Module):
    """A module that keeps float64 tables beside its float32 buffers; `.double()` restores the float64 values."""

    def __init__(self) -> None:
        super().__init__()
        self._exact: dict[str, Tensor] = {}

    def register_table(self, name: str, table: Tensor) -> None:
        """Register a float64 table as a buffer, outside the state_dict because the schedule determines it."""
        self.register_buffer(name, table.float(), persistent=False)
        self._exact[name] = table

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, table in self._exact.items():
            # Copied from float64: a float32 table converted to double keeps its rounding errors.
            getattr(self, name).copy_(table)
        return self


class NoiseSchedule(ExactTables):
    """The tables of a schedule, with the usual names: a_t = 1 - b_t, abar_t = a_0 .. a_t, abar_{-1} = 1.

    Args:
        beta_schedule: computes the betas.
        timesteps: T, at least 1.
        zero_terminal_snr: rescale the schedule so that x_T is pure noise (Lin et al. 2023).

    Attributes:
        num_timesteps: T.
        zero_terminal_snr: whether the schedule was rescaled.
        snr: abar / (1 - abar), float64 (T,).

    Raises:
        ValueError: the schedule does not exist for that T, a beta is outside [0, 1), or the first beta is 0.
    """

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
    log_sigma: Tensor
    _coefficients: Tensor

    def __init__(self, beta_schedule: BetaSchedule, timesteps: int, zero_terminal_snr: bool = False) -> None:
        super().__init__()
        if timesteps < 1:
            raise ValueError(f"timesteps is {timesteps}; it must be at least 1")
        betas = _checked(beta_schedule.betas(timesteps))
        if zero_terminal_snr:
            betas = rescale_to_zero_terminal_snr(betas)
        self.num_timesteps = timesteps
        self.zero_terminal_snr = zero_terminal_snr
        alpha_bar = torch.cumprod(1.0 - betas, dim=0)
        previous = F.pad(alpha_bar[:-1], (1, 0), value=1.0)
        divisor = alpha_bar.clamp(min=MIN_ALPHA_BAR)
        coef1, coef2, variance = posterior_coefficients(betas, alpha_bar, previous)
        sigma = (1.0 / divisor - 1.0).sqrt()
        coefficients = (alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt(), (1.0 / divisor).sqrt(), sigma)
        self.snr = alpha_bar / (1.0 - alpha_bar)
        for name, table in {
            "betas": betas,
            "alphas_cumprod": alpha_bar,
            "alphas_cumprod_prev": previous,
            "sqrt_alphas_cumprod": coefficients[0],
            "sqrt_one_minus_alphas_cumprod": coefficients[1],
            "log_one_minus_alphas_cumprod": (1.0 - alpha_bar).log(),
            "sqrt_recip_alphas_cumprod": coefficients[2],
            "sqrt_recipm1_alphas_cumprod": sigma,
            "posterior_variance": variance,
            # The variance is 0 at t = 0, where no noise is added.
            "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
            "posterior_mean_coef1": coef1,
            "posterior_mean_coef2": coef2,
            # The noise level is at most 1e10.
            "log_sigma": sigma.log(),
            # The four tables of `Coefficients` stacked, so that a step needs one indexing operation.
            "_coefficients": torch.stack(coefficients, dim=1),
        }.items():
            self.register_table(name, table)
        self._alpha_bar: list[float] = alpha_bar.tolist()
        self._log_sigma: list[float] = sigma.log().tolist()

    @property
    def device(self) -> torch.device:
        """The device of the tables."""
        return self.betas.device

    def alpha_bar(self, t: float) -> float:
        """Return abar_t in float64; 1 at t = -1. Between two timesteps, log sigma is interpolated."""
        if t < 0:
            return 1.0
        if isinstance(t, int):
            return self._alpha_bar[t]
        start, end = self._log_sigma[math.floor(t)], self._log_sigma[math.ceil(t)]
        log_sigma = start + (t - math.floor(t)) * (end - start)
        return 1.0 / (1.0 + math.exp(2.0 * log_sigma))

    def time_of_sigma(self, sigma: float) -> float:
        """Return the floating-point t in [0, T-1] at which sqrt(1/abar_t - 1) is `sigma`.

        Noise levels outside the schedule's range are clamped to it.
        """
        levels, wanted = self._log_sigma, math.log(sigma)
        high = bisect_right(levels, wanted)
        if high == 0 or high == len(levels):
            return float(min(high, len(levels) - 1))
        low = high - 1
        return low + (wanted - levels[low]) / (levels[high] - levels[low])

    def at(self, t: Tensor, x: Tensor) -> Coefficients:
        """Return the coefficients at timesteps t, (B,), for images like `x`."""
        if t.is_floating_point():
            return self._between(t, x)
        shape = (len(t), 4, *(1 for _ in x.shape[1:]))
        return Coefficients(*self._coefficients[t].reshape(shape).unbind(1))

    def _between(self, t: Tensor, x: Tensor) -> Coefficients:
        start, end = (extract(self.log_sigma, each.long(), x.shape) for each in (t.floor(), t.ceil()))
        share = (t - t.floor()).to(start.dtype).reshape(start.shape)
        sigma = torch.lerp(start, end, share).exp()
        sqrt_alpha_bar = (1.0 + sigma.square()).rsqrt()
        return Coefficients(sqrt_alpha_bar, sigma * sqrt_alpha_bar, 1.0 / sqrt_alpha_bar, sigma)

    def noise_from_x0(self, x_t: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        """Return (sqrt(1/abar) x_t - x0) / sqrt(1/abar - 1), the noise between x0 and x_t."""
        return self.at(t, x_t).noise_from_x0(x_t, x0)

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise (Ho et al. 2020, equation 4)."""
        return self.at(t, x0).x_t(x0, noise)

    def q_posterior(self, x0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean, variance and log variance of q(x_{t-1} | x_t, x0) (Ho et al. 2020, equations 6 and 7)."""
        coef1, coef2, variance, log_variance = (
            extract(table, t, x_t.shape)
            for table in (
                self.posterior_mean_coef1,
                self.posterior_mean_coef2,
                self.posterior_variance,
                self.posterior_log_variance_clipped,
            )
        )
        return coef1 * x0 + coef2 * x_t, variance, log_variance


TABLES = {name for name in NoiseSchedule.__annotations__ if not name.startswith("_")}


def extract(table: Tensor, t: Tensor, shape: Size) -> Tensor:
    """Return a table's values at timesteps t, (B,), as (B, 1, ...) that broadcasts against a batch of `shape`."""
    return table[t].reshape(len(t), *(1 for _ in shape[1:]))


def _checked(betas: Tensor) -> Tensor:
    if not bool(((betas >= 0.0) & (betas < 1.0)).all() and betas[0] > 0.0):
        raise ValueError(
            f"beta_schedule begins with {float(betas[0]):.4g} and has betas from {float(betas.min()):.4g} to"
            f" {float(betas.max()):.4g}; each must lie in [0, 1) and the first above 0: change its options"
        )
    return betas
