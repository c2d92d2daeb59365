"""A process whose variance is learned too, Nichol & Dhariwal 2021 (https://arxiv.org/abs/2102.09672).

    log variance = v log b_t + (1 - v) log(b_t (1 - abar_{t-1}) / (1 - abar_t)),       loss = L_simple + lambda L_vlb

The network gives v for each element, as 2 v - 1, in the second half of its channels.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diffusion_core.process.gaussian_diffusion import GaussianDiffusion
from diffusion_core.process.tables import extract
from diffusion_core.process.vlb import discretized_gaussian_nll, normal_kl
from diffusion_core.samplers import LearnedModelPrediction


class LearnedGaussianDiffusion(GaussianDiffusion):
    """A `GaussianDiffusion` whose network also learns the variance of p(x_{t-1} | x_t).

    Args:
        model: as for `GaussianDiffusion`, with `out_dim` twice `channels` (`Unet(learned_variance=True)`).
        vb_loss_weight: lambda, at least 0.
        **options: of `GaussianDiffusion`.

    Raises:
        ValueError: as `GaussianDiffusion`; or `vb_loss_weight` is negative.
    """

    outputs_per_channel: ClassVar[int] = 2

    def __init__(self, model: nn.Module, vb_loss_weight: float = 0.001, **options: Any) -> None:
        if not vb_loss_weight >= 0.0:
            raise ValueError(f"vb_loss_weight is {vb_loss_weight}; it must be at least 0")
        super().__init__(model, **options)
        self.vb_loss_weight = vb_loss_weight

    def model_predictions(
        self,
        x: Tensor,
        t: Tensor,
        x_self_cond: Tensor | None = None,
        clip_x_start: bool = False,
        rederive_pred_noise: bool = False,
        *,
        classes: Tensor | None = None,
    ) -> LearnedModelPrediction:
        """Return a `LearnedModelPrediction`; arguments as in `GaussianDiffusion`."""
        output, variance = self._network(x, t, x_self_cond, classes).chunk(2, dim=1)
        return LearnedModelPrediction(*self._convert(output, x, t, clip_x_start, rederive_pred_noise), variance)

    def p_mean_variance(
        self,
        x: Tensor,
        t: Tensor,
        x_self_cond: Tensor | None = None,
        clip_denoised: bool = True,
        *,
        classes: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return mean, variance and log variance of p(x_{t-1} | x_t), and x0-hat."""
        _, x0, learned = self.model_predictions(x, t, x_self_cond, classes=classes)
        if clip_denoised:
            x0 = x0.clamp(-1.0, 1.0)
        log_variance = self._log_variance(learned, t)
        return self.q_posterior(x0, x, t)[0], log_variance.exp(), log_variance, x0

    def _log_variance(self, learned: Tensor, t: Tensor) -> Tensor:
        least = extract(self.posterior_log_variance_clipped, t, learned.shape)
        greatest = extract(self.betas, t, learned.shape).log()
        return least + (learned + 1.0) * 0.5 * (greatest - least)

    def _image_losses(self, output: Tensor, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        output, learned = output.chunk(2, dim=1)
        simple = super()._image_losses(output, x_start, t, noise)
        x_t = self.q_sample(x_start, t, noise)
        return simple + self.vb_loss_weight * self._bound(output.detach(), learned, x_start, x_t, t)

    def _bound(self, output: Tensor, learned: Tensor, x_start: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the term of the variational bound at t, in bits an element, (B,); the mean has no gradient."""
        true_mean, _, true_log_variance = self.q_posterior(x_start, x_t, t)
        x0 = self._convert(output, x_t, t, clip=False, rederive=False).pred_x_start
        mean = self.q_posterior(x0, x_t, t)[0]
        log_variance = self._log_variance(learned, t)
        divergence = normal_kl(true_mean, true_log_variance, mean, log_variance).flatten(1).mean(1)
        decoding = discretized_gaussian_nll(x_start, mean, log_variance).flatten(1).mean(1)
        return torch.where(t == 0, decoding, divergence)
