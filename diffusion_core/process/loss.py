"""The training loss: weighted, self-conditioned, and with the variational bound if the variance is learned."""

import torch
from torch import Tensor

from diffusion_core.process.denoiser import Denoiser
from diffusion_core.process.losses import Loss
from diffusion_core.process.noise import assign_noise, check_offset, random_self_cond_mask, require_scipy, with_offset
from diffusion_core.process.noise_schedule import ExactTables, NoiseSchedule
from diffusion_core.process.objectives import Objective
from diffusion_core.process.variance import variational_bound
from diffusion_core.process.weightings import Weighting
from diffusion_core.runtime.device import to_device
from diffusion_core.samplers.protocols import Conditioning


class DiffusionLoss(ExactTables):
    """L_simple of Ho et al. 2020, equation 14, times a weight; plus lambda L_vlb for a learned variance.

    Args:
        schedule: the noise schedule.
        objective: what the network predicts.
        weighting: the weight of each timestep.
        loss: the loss of each element.
        offset_noise_strength: standard deviation of the noise that all pixels of a channel share; 0 for none.
        immiscible: assign the noise of a batch to its nearest images; see `assign_noise`. Needs SciPy.

    Attributes:
        loss_weight: the weight of each timestep, (T,).
        vb_loss_weight: lambda; used only if the variance is learned.

    Raises:
        ValueError: a number is out of its range, SciPy is missing, or the schedule has zero terminal SNR and the
            weighting is 0 at the last timestep.
    """

    loss_weight: Tensor

    def __init__(
        self,
        schedule: NoiseSchedule,
        objective: Objective,
        weighting: Weighting,
        loss: Loss,
        *,
        offset_noise_strength: float = 0.0,
        immiscible: bool = False,
    ) -> None:
        super().__init__()
        check_offset(offset_noise_strength)
        if immiscible:
            require_scipy()
        weight = weighting(schedule.snr, objective.error_ratio(schedule.snr))
        if schedule.zero_terminal_snr and weight[-1] == 0.0:
            raise ValueError(
                f"zero_terminal_snr is True and the weighting {weighting.kind}, which gives weight 0 to the last"
                " timestep, where sampling begins: take the weighting uniform or p2"
            )
        # A tuple, so that the schedule is a submodule of its owner alone.
        self._weighted_for = (schedule, objective)
        self.loss = loss
        self.offset_noise_strength = offset_noise_strength
        self.immiscible = immiscible
        self.vb_loss_weight = 0.001
        self.register_table("loss_weight", weight)

    def forward(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        t: Tensor,
        noise: Tensor | None = None,
        *,
        offset_noise_strength: float | None = None,
        classes: Tensor | None = None,
        self_cond_mask: Tensor | None = None,
        unlabelled: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the loss of each image, (B,): the mean over its elements, times the weight of its timestep.

        If the network is self-conditioned, half of the batch gets an x0-hat predicted without gradient, and the
        other half gets zeros (Chen et al. 2022, https://arxiv.org/abs/2208.04202).

        To split a batch without changing its loss, sample `noise`, `self_cond_mask` and `unlabelled` for the whole
        batch and pass each part its own elements.

        Args:
            denoiser: the denoiser of the network to train.
            x0: images in [-1, 1], (B, C, H, W).
            t: timesteps, int64 (B,).
            noise: (B, C, H, W); random if None.
            offset_noise_strength: overrides that of the loss.
            classes: labels, (B,), for a class-conditional network; a random share is replaced by the null class.
            self_cond_mask: which images get an x0-hat: bool (B,) on the host, or indices, int64; a random half if
                None.
            unlabelled: which labels are replaced by the null class, bool (B,); random if None.
            generator: source of all random numbers; PyTorch's global one if None.

        Raises:
            ValueError: classes are given, and the network takes none; or the denoiser has another schedule or objective
                than the loss.
        """
        schedule, objective = self._weighted_for
        same = schedule is denoiser.schedule or torch.equal(schedule.snr, denoiser.schedule.snr)
        if not same or objective.name != denoiser.objective.name:
            raise ValueError("the denoiser has another schedule or objective than this loss: build both of the same")
        if noise is None:
            noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        strength = self.offset_noise_strength if offset_noise_strength is None else offset_noise_strength
        noise = with_offset(noise, strength, generator)
        if self.immiscible:
            noise = noise[assign_noise(x0, noise)]
        classes = _drop_classes(classes, denoiser, unlabelled, generator)
        at = denoiser.schedule.at(t, x0)
        x_t = at.x_t(x0, noise)
        x_self_cond = None
        if denoiser.self_condition:
            mask = random_self_cond_mask(len(x_t), generator) if self_cond_mask is None else self_cond_mask
            x_self_cond = _self_conditioning_estimate(denoiser, x_t, t, classes, mask)
        output, variance = denoiser.output(x_t, t, Conditioning(classes, x_self_cond))
        elements = self.loss(output, denoiser.objective.target(x0, noise, at))
        loss: Tensor = elements.flatten(1).mean(1) * self.loss_weight[t]
        if variance is None:
            return loss
        # Detached, so that the bound trains only the variance.
        x0_hat = denoiser.x0(output.detach(), x_t, at, clip=False)
        _, log_variance = denoiser.variance.of(variance, t, denoiser.schedule, variance)
        bound = variational_bound(denoiser.schedule, x0, x0_hat, x_t, t, log_variance)
        return loss + self.vb_loss_weight * bound


def _drop_classes(
    classes: Tensor | None, denoiser: Denoiser, unlabelled: Tensor | None, generator: torch.Generator | None
) -> Tensor | None:
    """Return the labels, some replaced by the null class: those in `unlabelled`, or a random share."""
    if classes is None:
        return None
    if unlabelled is None:
        unlabelled = torch.rand(classes.shape, generator=generator, device=classes.device) < denoiser.cond_drop_prob
    return classes.masked_fill(to_device(unlabelled, classes.device), denoiser.num_classes or 0)


@torch.no_grad()
def _self_conditioning_estimate(
    denoiser: Denoiser, x_t: Tensor, t: Tensor, classes: Tensor | None, mask: Tensor
) -> Tensor:
    """Return x0-hat, without gradient, for the images of the mask, and zeros for the rest (Chen et al. 2022)."""
    estimate = torch.zeros_like(x_t)
    # The mask is read on the host: counting its elements on a device would need a synchronisation.
    chosen = mask if mask.dtype == torch.long else mask.cpu().nonzero().squeeze(1)
    chosen = to_device(chosen, x_t.device)
    if len(chosen):
        conditioning = Conditioning(None if classes is None else classes[chosen])
        estimate.index_copy_(0, chosen, denoiser(x_t[chosen], t[chosen], conditioning, clip=False).x0)
    return estimate
