"""From image to noise: the fixed half of the diffusion process, and its conversions.

    q(x_t | x0) = N(sqrt(abar_t) x0, (1 - abar_t) I),     t = 0 .. T-1

Shapes are (B, C, H, W) for images and (B,) for t throughout.
"""

import torch
from torch import Tensor, nn

from diffusion_core.process.objectives import Coefficients, noise_from_x0, v_from_x0, x0_from_noise, x0_from_v
from diffusion_core.process.schedules import BetaSchedule
from diffusion_core.process.tables import Tables, extract


class ForwardProcess(nn.Module):
    """A schedule's tables as float32 buffers, and what follows from them without a network.

    Args:
        beta_schedule: gives the betas.
        timesteps: T, at least 1.

    Raises:
        ValueError: no such schedule exists for that T.
    """

    betas: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    posterior_variance: Tensor
    posterior_log_variance_clipped: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor

    def __init__(self, beta_schedule: BetaSchedule, timesteps: int) -> None:
        super().__init__()
        if timesteps < 1:
            raise ValueError(f"timesteps is {timesteps}; it must be at least 1")
        self.num_timesteps = timesteps
        tables = Tables.of(beta_schedule.betas(timesteps))
        for name, table in tables.named():
            # Not in the state_dict: the tables follow from the schedule.
            self.register_buffer(name, table.float(), persistent=False)
        self.snr = tables.snr
        self._alpha_bar: list[float] = tables.alphas_cumprod.tolist()

    @property
    def device(self) -> torch.device:
        """Where the process's tables are."""
        return self.betas.device

    def alpha_bar(self, t: int) -> float:
        """Return abar_t in float64; 1 at t = -1."""
        return 1.0 if t < 0 else self._alpha_bar[t]

    def _at(self, t: Tensor, x: Tensor) -> Coefficients:
        return Coefficients(
            extract(self.sqrt_alphas_cumprod, t, x.shape),
            extract(self.sqrt_one_minus_alphas_cumprod, t, x.shape),
            extract(self.sqrt_recip_alphas_cumprod, t, x.shape),
            extract(self.sqrt_recipm1_alphas_cumprod, t, x.shape),
        )

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
