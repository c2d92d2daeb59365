"""From image to noise: the fixed half of the diffusion process, and its conversions.

    q(x_t | x0) = N(sqrt(abar_t) x0, (1 - abar_t) I),     t = 0 .. T-1

Shapes are (B, C, H, W) for images and (B,) for t throughout. t is int64; samplers that walk the noise level
sigma = sqrt(1/abar - 1) instead also ask between two timesteps, where log sigma is interpolated.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from diffusion_core.process.objectives import Coefficients, noise_from_x0, v_from_x0, x0_from_noise, x0_from_v
from diffusion_core.process.schedules import BetaSchedule
from diffusion_core.process.tables import Tables, extract

# Tables in the order of the fields of `Coefficients`.
COEFFICIENTS = (
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
)


class ForwardProcess(nn.Module):
    """A schedule's tables as buffers, and what follows from them without a network.

    Tables are computed in float64 and kept in float32; `.double()` gives the float64 ones back, unrounded.

    Args:
        beta_schedule: gives the betas.
        timesteps: T, at least 1.
        zero_terminal_snr: rescale the schedule so that x_T is noise alone (Lin et al. 2023).

    Raises:
        ValueError: no such schedule exists for that T.
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
        self.num_timesteps = timesteps
        self.zero_terminal_snr = zero_terminal_snr
        tables = Tables.of(beta_schedule.betas(timesteps), zero_terminal_snr)
        self.snr = tables.snr
        self._exact: dict[str, Tensor] = {}
        for name, table in tables.named():
            self._register_table(name, table)
        self._register_table("log_sigma", tables.log_sigma)
        # The four that a prediction needs, together, so that one look-up a step finds them.
        self._register_table("_coefficients", torch.stack([getattr(tables, name) for name in COEFFICIENTS], dim=1))
        self._alpha_bar: list[float] = tables.alphas_cumprod.tolist()
        self._log_sigma: list[float] = tables.log_sigma.tolist()

    def _register_table(self, name: str, table: Tensor) -> None:
        # Not in the state_dict: the tables follow from the schedule.
        self.register_buffer(name, table.float(), persistent=False)
        self._exact[name] = table

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, table in self._exact.items():
            # From the float64 values: a float32 table made double would keep the errors of float32.
            getattr(self, name).copy_(table)
        return self

    @property
    def device(self) -> torch.device:
        """Where the process's tables are."""
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
        """Return the t, in 0 .. T-1 and between two timesteps as a rule, at which sqrt(1/abar_t - 1) is `sigma`.

        Levels outside the schedule's are taken to its nearest.
        """
        levels, wanted = self._log_sigma, math.log(sigma)
        high = bisect_right(levels, wanted)
        if high == 0 or high == len(levels):
            return float(min(high, len(levels) - 1))
        low = high - 1
        return low + (wanted - levels[low]) / (levels[high] - levels[low])

    def _at(self, t: Tensor, x: Tensor) -> Coefficients:
        if t.is_floating_point():
            return self._between(t, x)
        shape = (len(t), len(COEFFICIENTS), *(1 for _ in x.shape[1:]))
        return Coefficients(*self._coefficients[t].reshape(shape).unbind(1))

    def _between(self, t: Tensor, x: Tensor) -> Coefficients:
        start, end = (extract(self.log_sigma, each.long(), x.shape) for each in (t.floor(), t.ceil()))
        share = (t - t.floor()).to(start.dtype).reshape(start.shape)
        sigma = torch.lerp(start, end, share).exp()
        sqrt_alpha_bar = (1.0 + sigma.square()).rsqrt()
        return Coefficients(sqrt_alpha_bar, sigma * sqrt_alpha_bar, 1.0 / sqrt_alpha_bar, sigma)

    def predict_start_from_noise(self, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return x0 = sqrt(1/abar) x_t - sqrt(1/abar - 1) noise."""
        return x0_from_noise(x_t, noise, self._at(t, x_t))

    def predict_noise_from_start(self, x_t: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        """Return noise = (sqrt(1/abar) x_t - x0) / sqrt(1/abar - 1)."""
        return noise_from_x0(x_t, x0, self._at(t, x_t))

    def predict_v(self, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return v = sqrt(abar) noise - sqrt(1 - abar) x0."""
        return v_from_x0(x_start, noise, self._at(t, x_start))

    def predict_start_from_v(self, x_t: Tensor, t: Tensor, v: Tensor) -> Tensor:
        """Return x0 = sqrt(abar) x_t - sqrt(1 - abar) v."""
        return x0_from_v(x_t, v, self._at(t, x_t))

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise (Ho et al. 2020, equation 4)."""
        noise = torch.randn_like(x_start) if noise is None else noise
        at = self._at(t, x_start)
        return at.sqrt_alpha_bar * x_start + at.sqrt_one_minus_alpha_bar * noise

    def q_posterior(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean, variance and log variance of q(x_{t-1} | x_t, x0) (Ho et al. 2020, equations 6 and 7)."""
        mean = (
            extract(self.posterior_mean_coef1, t, x_t.shape) * x_start
            + extract(self.posterior_mean_coef2, t, x_t.shape) * x_t
        )
        variance = extract(self.posterior_variance, t, x_t.shape)
        log_variance = extract(self.posterior_log_variance_clipped, t, x_t.shape)
        return mean, variance, log_variance
