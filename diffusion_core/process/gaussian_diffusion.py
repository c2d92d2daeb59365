"""The diffusion process of Ho et al. 2020, with the names that lucidrains/denoising-diffusion-pytorch made usual.

    q(x_t | x0) = N(sqrt(abar_t) x0, (1 - abar_t) I),     t = 0 .. T-1

Images enter and leave in [0, 1] and are worked on in [-1, 1].
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_core.kinds import choose
from diffusion_core.process.draws import check_offset, random_half, with_offset
from diffusion_core.process.generative_process import GenerativeProcess
from diffusion_core.process.immiscible import assign_noise, require_scipy
from diffusion_core.process.losses import Loss
from diffusion_core.process.schedules import BetaSchedule
from diffusion_core.process.transfer import moved
from diffusion_core.process.weightings import Weighting
from diffusion_core.process.weightings.min_snr import MinSNR


class GaussianDiffusion(GenerativeProcess):
    """A denoising network and the process it is trained for.

    Args:
        model: called as `model(x, t, x_self_cond)`, or `model(x, t, x_self_cond, classes)` where it has `num_classes`;
            has `channels`, `out_dim` and `self_condition`. x is (B, C, H, W) in about [-1, 1], t int64 (B,) in
            0 .. T-1; the sampler Heun also asks between two timesteps, in floating point.
        image_size: height and width of the images, in pixels, or one number for both.
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
        immiscible: give each image of a batch the nearest noise; see `process/immiscible.py`. Needs SciPy.
        weighting: a name of `process/weightings` ("snr", "min_snr", "p2", "uniform") or a weighting; "snr" if None.
        loss: a name of `process/losses` ("l2", "l1", "huber") or a loss.
        zero_terminal_snr: rescale the schedule so that x_T is noise alone (Lin et al. 2023). Needs pred_v or pred_x0,
            and a weighting that does not forget the last timestep ("uniform" or "p2").

    Raises:
        ValueError: an argument is outside its range, or two of them exclude one another; the message names them.
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
        schedule_fn_kwargs: Mapping[str, Any] | None = None,
        ddim_sampling_eta: float = 0.0,
        auto_normalize: bool = True,
        offset_noise_strength: float = 0.0,
        min_snr_loss_weight: bool = False,
        min_snr_gamma: float = 5.0,
        immiscible: bool = False,
        weighting: str | Weighting | None = None,
        loss: str | Loss = "l2",
        zero_terminal_snr: bool = False,
    ) -> None:
        if min_snr_loss_weight and weighting is not None:
            raise ValueError(
                f"min_snr_loss_weight is True and weighting is {weighting!r}, which excludes it: leave one of them out"
            )
        if min_snr_loss_weight and not min_snr_gamma > 0.0:
            raise ValueError(f"min_snr_gamma is {min_snr_gamma}; it must be greater than 0")
        if schedule_fn_kwargs and not isinstance(beta_schedule, str):
            raise ValueError(f"schedule_fn_kwargs is {schedule_fn_kwargs}; it goes with a beta_schedule given by name")
        check_offset(offset_noise_strength)
        if immiscible:
            require_scipy()
        schedule: BetaSchedule = _chosen("schedules", beta_schedule, "beta_schedule", **(schedule_fn_kwargs or {}))
        super().__init__(
            model,
            image_size,
            schedule,
            timesteps,
            objective,
            auto_normalize,
            zero_terminal_snr,
            sampling_timesteps,
            ddim_sampling_eta,
        )
        self.offset_noise_strength = offset_noise_strength
        self.immiscible = immiscible
        self._loss: Loss = _chosen("losses", loss, "loss")
        weigh: Weighting = (
            MinSNR(gamma=min_snr_gamma)
            if min_snr_loss_weight
            else _chosen("weightings", weighting or "snr", "weighting")
        )
        weight = weigh(self.snr, self._objective.error_ratio(self.snr))
        if zero_terminal_snr and weight[-1] == 0.0:
            raise ValueError(
                f"zero_terminal_snr is True and the weighting {weigh.kind}, which gives weight 0 to the last timestep,"
                " where sampling begins: take the weighting uniform or p2"
            )
        self._register_table("loss_weight", weight)

    def p_losses(
        self,
        x_start: Tensor,
        t: Tensor,
        noise: Tensor | None = None,
        offset_noise_strength: float | None = None,
        loss_reduction: str = "mean",
        *,
        classes: Tensor | None = None,
        guessed: Tensor | None = None,
        unlabelled: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the loss of a batch: the loss of each element, mean of an image, times weight, mean of the batch.

        Where the network is self-conditioned, half of the batch gets an x0-hat predicted without gradient and the
        other half zeros (Chen et al. 2022, https://arxiv.org/abs/2208.04202).

        Whoever cuts a batch into parts and wants the loss of the whole gives `noise`, `guessed` and `unlabelled`, drawn
        for the whole, to each part.

        Args:
            x_start: x0 in [-1, 1], (B, C, H, W).
            t: timesteps, int64 (B,).
            noise: (B, C, H, W); drawn if not given.
            offset_noise_strength: overrides the process's own.
            loss_reduction: "mean" for a scalar, "none" for the loss of each image, (B,).
            classes: labels, (B,), for a class-conditional network, of which it drops a share.
            guessed: which images get an x0-hat, bool (B,) on the host, or their indices, int64; `random_half` if not
                given.
            unlabelled: which labels are dropped, bool (B,); drawn by the network if not given.
            generator: source of all draws made here; torch's global one if not given.

        Raises:
            ValueError: the images have other channels, height or width than the process, the reduction is unknown, or
                the network takes no classes.
        """
        self._check_images(x_start)
        if loss_reduction not in ("mean", "none"):
            raise ValueError(f"loss_reduction is {loss_reduction!r}; it must be mean or none")
        strength = self.offset_noise_strength if offset_noise_strength is None else offset_noise_strength
        if noise is None:
            noise = torch.randn(x_start.shape, generator=generator, device=x_start.device, dtype=x_start.dtype)
        noise = with_offset(noise, strength, generator)
        if self.immiscible:
            noise = noise[assign_noise(x_start, noise)]
        if classes is not None and unlabelled is not None:
            classes = classes.masked_fill(moved(unlabelled, classes.device), self.num_classes or 0)
        elif classes is not None and hasattr(self.model, "drop_classes"):
            classes = self.model.drop_classes(classes, generator)  # type: ignore[operator]
        x_t = self.q_sample(x_start, t, noise)
        x_self_cond = None
        if self.self_condition:
            guessed = random_half(len(x_t), generator) if guessed is None else guessed
            x_self_cond = self._first_guess(x_t, t, classes, guessed)
        output = self._network(x_t, t, x_self_cond, classes)
        loss = self._image_losses(output, x_start, t, noise)
        return loss.mean() if loss_reduction == "mean" else loss

    @torch.no_grad()
    def _first_guess(self, x_t: Tensor, t: Tensor, classes: Tensor | None, guessed: Tensor) -> Tensor:
        """Return x0-hat for the images of `guessed`, and zeros for the rest."""
        guess = torch.zeros_like(x_t)
        # A mask is looked at on the host: the device would have to be waited for to learn how many there are.
        chosen = guessed if guessed.dtype == torch.long else guessed.cpu().nonzero().squeeze(1)
        chosen = moved(chosen, x_t.device)
        if len(chosen):
            some = None if classes is None else classes[chosen]
            guess.index_copy_(0, chosen, self.model_predictions(x_t[chosen], t[chosen], classes=some).pred_x_start)
        return guess

    def _image_losses(self, output: Tensor, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return the weighted loss of each image, (B,)."""
        target = self._objective.target(x_start, noise, self._at(t, x_start))
        return self._loss(output, target).flatten(1).mean(1) * self.loss_weight[t]

    def random_times(self, batch_size: int, generator: torch.Generator | None = None) -> Tensor:
        """Return timesteps drawn evenly from 0 .. T-1, int64 (B,)."""
        return torch.randint(0, self.num_timesteps, (batch_size,), generator=generator, device=self.device)

    def noise_assignment(self, x_start: Tensor, noise: Tensor) -> Tensor:
        """Return which noise each image gets where the process is `immiscible`, int64 (B,)."""
        return assign_noise(x_start, noise)

    def forward(
        self,
        img: Tensor,
        *args: Any,
        times: Tensor | None = None,
        loss_reduction: str = "mean",
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return `p_losses` of a batch of images at random timesteps.

        Args:
            img: (B, C, H, W), in [0, 1] where `auto_normalize`.
            *args: passed on to `p_losses`.
            times: timesteps, (B,); drawn if not given.
            loss_reduction: passed on to `p_losses`.
            generator: source of all draws; torch's global one if not given.
            **kwargs: passed on to `p_losses`.

        Raises:
            ValueError: the images have other channels, height or width than the process, or a label is out of range.
        """
        self._check_images(img)
        if kwargs.get("classes") is not None:
            kwargs["classes"] = self.checked_classes(kwargs["classes"], len(img))
        times = self.random_times(len(img), generator) if times is None else times
        # mypy lets *args reach as far as the arguments that are given by name.
        return self.p_losses(  # type: ignore[misc]
            self.normalize(img), times, *args, loss_reduction=loss_reduction, generator=generator, **kwargs
        )


def _chosen(package: str, choice: Any, argument: str, **options: Any) -> Any:
    """Return a choice that may be given by its name."""
    return (
        choose(f"diffusion_core.process.{package}", choice, argument, **options) if isinstance(choice, str) else choice
    )
