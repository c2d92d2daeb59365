"""The diffusion process of Ho et al. 2020, with the names that lucidrains/denoising-diffusion-pytorch made usual.

    q(x_t | x0) = N(sqrt(abar_t) x0, (1 - abar_t) I),     t = 0 .. T-1

Images enter and leave in [0, 1] and are worked on in [-1, 1].
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_core.kinds import choose
from diffusion_core.process.reverse_process import ReverseProcess
from diffusion_core.process.schedules import BetaSchedule
from diffusion_core.process.weightings import Weighting
from diffusion_core.process.weightings.min_snr import MinSNR
from diffusion_core.samplers import Sampler
from diffusion_core.samplers.ddim import DDIM
from diffusion_core.samplers.ddpm import DDPM


class GaussianDiffusion(ReverseProcess):
    """A denoising network and the process it is trained for.

    Args:
        model: called as `model(x, t, x_self_cond)`, or `model(x, t, x_self_cond, classes)` where it has `num_classes`;
            has `channels`, `out_dim` and `self_condition`. x is (B, C, H, W) in about [-1, 1], t (B,) in 0 .. T-1.
        image_size: height and width of the images, in pixels.
        timesteps: T, at least 1.
        sampling_timesteps: steps of DDIM that `sample` takes when it is given no sampler; DDPM if not given or T.
        objective: what the network's output means: "pred_noise", "pred_x0" or "pred_v".
        beta_schedule: a name of `process/schedules` ("linear", "cosine", "sigmoid") or a schedule.
        schedule_fn_kwargs: options of a schedule given by name.
        ddim_sampling_eta: eta of that DDIM.
        auto_normalize: images come and go in [0, 1] and not in [-1, 1].
        offset_noise_strength: standard deviation of a draw that all pixels of a channel share; 0 for none.
        min_snr_loss_weight: the weighting is min-SNR with `min_snr_gamma`; goes without `weighting`.
        min_snr_gamma: see `MinSNR`.
        weighting: a name of `process/weightings` ("snr", "min_snr", "p2") or a weighting; "snr" if not given.

    Raises:
        ValueError: an argument is outside its range; the message names it.
    """

    loss_weight: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        image_size: int | tuple[int, int],
        timesteps: int = 1000,
        sampling_timesteps: int | None = None,
        objective: str = "pred_v",
        beta_schedule: str | BetaSchedule = "sigmoid",
        schedule_fn_kwargs: dict[str, Any] | None = None,
        ddim_sampling_eta: float = 0.0,
        auto_normalize: bool = True,
        offset_noise_strength: float = 0.0,
        min_snr_loss_weight: bool = False,
        min_snr_gamma: float = 5.0,
        weighting: str | Weighting | None = None,
    ) -> None:
        if min_snr_loss_weight and weighting is not None:
            raise ValueError("min_snr_loss_weight and weighting are both given: leave one of them out")
        schedule: BetaSchedule = (
            choose("diffusion_core.process.schedules", beta_schedule, "beta_schedule", **(schedule_fn_kwargs or {}))
            if isinstance(beta_schedule, str)
            else beta_schedule
        )
        sampler: Sampler = DDPM()
        if sampling_timesteps is not None and sampling_timesteps != timesteps:
            sampler = DDIM(steps=sampling_timesteps, eta=ddim_sampling_eta)
        super().__init__(model, image_size, schedule, timesteps, objective, auto_normalize, sampler)
        if min_snr_loss_weight:
            weigh: Weighting = MinSNR(gamma=min_snr_gamma)
        elif weighting is None or isinstance(weighting, str):
            weigh = choose("diffusion_core.process.weightings", weighting or "snr", "weighting")
        else:
            weigh = weighting

        self.offset_noise_strength = offset_noise_strength
        weight = weigh(self.snr, self._objective.error_ratio(self.snr))
        self.register_buffer("loss_weight", weight.float(), persistent=False)

    def p_losses(
        self,
        x_start: Tensor,
        t: Tensor,
        noise: Tensor | None = None,
        offset_noise_strength: float | None = None,
        *,
        classes: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the weighted loss of a batch, a scalar: error squared, mean a sample, times weight, mean of the batch.

        Where the network is self-conditioned, half of the batch gets an x0-hat predicted without gradient and the
        other half zeros (Chen et al. 2022, https://arxiv.org/abs/2208.04202).

        Args:
            x_start: x0 in [-1, 1], (B, C, H, W).
            t: timesteps, (B,).
            noise: (B, C, H, W); drawn if not given.
            offset_noise_strength: overrides the process's own.
            classes: labels, (B,), for a class-conditional network, of which it drops a share.
            generator: source of all draws made here; torch's global one if not given.
        """
        draw: Callable[..., Tensor] = lambda *shape: torch.randn(  # noqa: E731
            shape, generator=generator, device=x_start.device, dtype=x_start.dtype
        )
        noise = draw(*x_start.shape) if noise is None else noise
        strength = self.offset_noise_strength if offset_noise_strength is None else offset_noise_strength
        if strength > 0.0:
            noise = noise + strength * draw(*x_start.shape[:2], 1, 1)
        if classes is not None and hasattr(self.model, "drop_classes"):
            classes = self.model.drop_classes(classes, generator)  # type: ignore[operator]

        x_t = self.q_sample(x_start, t, noise)
        x_self_cond = self._first_guess(x_t, t, classes, generator) if self.self_condition else None
        output = self._network(x_t, t, x_self_cond, classes)
        target = self._objective.target(x_start, noise, self._at(t, x_start))
        error = F.mse_loss(output, target, reduction="none").flatten(1).mean(1)
        return (error * self.loss_weight[t]).mean()

    @torch.no_grad()
    def _first_guess(self, x_t: Tensor, t: Tensor, classes: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Return x0-hat for a random half of the batch and zeros for the rest."""
        order = torch.rand(len(x_t), generator=generator, device=x_t.device).argsort()
        # An odd batch alternates between the two halves nearest to it.
        half = len(x_t) // 2
        if len(x_t) % 2:
            half += int(torch.rand((), generator=generator, device=x_t.device) < 0.5)
        chosen = order[:half]
        guess = torch.zeros_like(x_t)
        if half:
            some = None if classes is None else classes[chosen]
            # Under autocast, a prediction of x0 comes in the network's lower precision.
            guess[chosen] = self.model_predictions(x_t[chosen], t[chosen], classes=some).pred_x_start.to(guess.dtype)
        return guess

    def forward(self, img: Tensor, *args: Any, generator: torch.Generator | None = None, **kwargs: Any) -> Tensor:
        """Return `p_losses` of a batch of images at random timesteps.

        Args:
            img: (B, C, H, W), in [0, 1] where `auto_normalize`.
            *args: passed on to `p_losses`.
            generator: source of all draws; torch's global one if not given.
            **kwargs: passed on to `p_losses`.

        Raises:
            ValueError: the images have other channels, height or width than the process.
        """
        if tuple(img.shape[1:]) != (self.channels, *self.image_size):
            raise ValueError(
                f"the images are {tuple(img.shape[1:])}; this process is for {(self.channels, *self.image_size)}"
            )
        if kwargs.get("classes") is not None:
            self._check_classes(kwargs["classes"], len(img))
        t = torch.randint(0, self.num_timesteps, (len(img),), generator=generator, device=img.device)
        return self.p_losses(self.normalize(img), t, *args, generator=generator, **kwargs)
