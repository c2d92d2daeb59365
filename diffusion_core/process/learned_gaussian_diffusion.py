"""A process with learned variance, Nichol & Dhariwal 2021 (https://arxiv.org/abs/2102.09672)."""

from typing import Any, ClassVar

from torch import nn

from diffusion_core.process.gaussian_diffusion import GaussianDiffusion
from diffusion_core.process.variance import LearnedVariance, Variance


class LearnedGaussianDiffusion(GaussianDiffusion):
    """A `GaussianDiffusion` whose network also learns the variance of p(x_{t-1} | x_t).

    Args:
        model: as for `GaussianDiffusion`, with `out_dim` twice `channels` (`Unet(learned_variance=True)`).
        vb_loss_weight: lambda, the weight of the variational bound, at least 0.
        **options: as for `GaussianDiffusion`.

    Raises:
        ValueError: as for `GaussianDiffusion`; or `vb_loss_weight` is negative.
    """

    variance: ClassVar[Variance] = LearnedVariance()

    def __init__(self, model: nn.Module, vb_loss_weight: float = 0.001, **options: Any) -> None:
        if not vb_loss_weight >= 0.0:
            raise ValueError(f"vb_loss_weight is {vb_loss_weight}; it must be at least 0")
        super().__init__(model, **options)
        self.loss.vb_loss_weight = vb_loss_weight

    @property
    def vb_loss_weight(self) -> float:
        """Lambda, the weight of the variational bound."""
        return self.loss.vb_loss_weight

    @vb_loss_weight.setter
    def vb_loss_weight(self, value: float) -> None:
        self.loss.vb_loss_weight = value
