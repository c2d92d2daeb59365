"""The diffusion process of Ho et al. 2020, with the names of lucidrains/denoising-diffusion-pytorch.

    q(x_t | x0) = N(sqrt(abar_t) x0, (1 - abar_t) I),     t = 0 .. T-1

Images are in [0, 1] at the interface and in [-1, 1] inside. `GaussianDiffusion` delegates to `NoiseSchedule`,
`Denoiser`, `DiffusionLoss` and the samplers.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diffusion_core.choices import choose
from diffusion_core.process import conversions, sampling
from diffusion_core.process.checks import (
    check_default_sampler,
    check_images,
    check_network,
    checked_classes,
    checked_image_size,
    has_checked_values,
)
from diffusion_core.process.denoiser import Denoiser, LearnedModelPrediction, ModelPrediction
from diffusion_core.process.loss import DiffusionLoss
from diffusion_core.process.losses import Loss, LossChoice
from diffusion_core.process.noise import assign_noise
from diffusion_core.process.noise_schedule import TABLES, NoiseSchedule
from diffusion_core.process.objectives import choose_objective
from diffusion_core.process.schedules import BetaSchedule, chosen_schedule
from diffusion_core.process.variance import FixedVariance, Variance
from diffusion_core.process.weightings import Weighting, chosen_weighting
from diffusion_core.samplers.ddim import DDIM
from diffusion_core.samplers.ddpm import DDPM
from diffusion_core.samplers.loop import Trajectory
from diffusion_core.samplers.protocols import Conditioning, Sampler

OF_SCHEDULE = TABLES | {"alpha_bar", "device", "num_timesteps", "snr", "zero_terminal_snr"}
OF_DDIM = {"sampling_timesteps": "steps", "ddim_sampling_eta": "eta"}
OF_LOSS = {"immiscible", "loss_weight", "offset_noise_strength"}
# With the value for a network that lacks the attribute.
OF_MODEL: dict[str, Any] = {"self_condition": False, "num_classes": None, "cond_drop_prob": 0.0}


class GaussianDiffusion(nn.Module):
    """A denoising network and the process it is trained for.

    Args:
        model: the network. It has `channels`, `out_dim` and `self_condition`, and is called as
            `model(x, t, x_self_cond)`, or as `model(x, t, x_self_cond, classes)` if it has `num_classes`. Training
            replaces a share `cond_drop_prob` of the labels by the null class, `num_classes`. Images x are (B, C, H, W)
            in about [-1, 1]; t is int64 (B,) in 0 .. T-1. The sampler Heun also passes floating-point t.
        image_size: height and width of the images in pixels, or one number for both.
        timesteps: T, at least 1.
        sampling_timesteps: steps of the default sampler, DDIM, in 1 .. T; the default sampler is DDPM if None or T.
        objective: what the network predicts: "pred_noise", "pred_x0" or "pred_v".
        beta_schedule: a name in `process/schedules.py` ("linear", "cosine", "sigmoid") or a schedule object.
        schedule_fn_kwargs: options of a schedule given by name.
        ddim_sampling_eta: eta of the default DDIM, in [0, 1].
        auto_normalize: images at the interface are in [0, 1]; if False, in [-1, 1].
        offset_noise_strength: standard deviation of the noise that all pixels of a channel share; 0 for none.
        min_snr_loss_weight: use min-SNR with `min_snr_gamma`; excludes `weighting`.
        min_snr_gamma: see `MinSNR`.
        immiscible: assign the noise of a batch to its nearest images; see `assign_noise`. Needs SciPy.
        weighting: a name in `process/weightings.py` ("snr", "min_snr", "p2", "uniform") or an object; "snr" if None.
        loss: a name in `process/losses.py` ("l2", "l1", "huber") or a loss object.
        zero_terminal_snr: rescale the schedule so that x_T is pure noise (Lin et al. 2023). Needs pred_v or pred_x0,
            and a weighting that is not 0 at the last timestep ("uniform" or "p2").

    Attributes:
        model: the network; it can be wrapped, or replaced by another network of the same channels.
        schedule: the `NoiseSchedule`; its tables, and those of the loss, can be read here and not set.
        loss: the `DiffusionLoss`.
        sampler: the default sampler of `sample` and `inpaint`.

    Raises:
        ValueError: an argument is out of its range, or two arguments exclude each other; the message names them.
    """

    variance: ClassVar[Variance] = FixedVariance()
    _has_checked_values = False

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
        super().__init__()
        network: Any = model
        check_network(network.out_dim, network.channels, self.variance.outputs_per_channel, type(self).__name__)
        self.model = model
        self.channels: int = network.channels
        # A wrapper may forward no attributes of the network.
        self._of_model = {name: getattr(network, name, default) for name, default in OF_MODEL.items()}
        self.image_size = checked_image_size(image_size, getattr(network, "downsample_factor", 1))
        self._image_shape = (self.channels, *self.image_size)
        self.auto_normalize = auto_normalize
        self._objective = choose_objective(objective, zero_terminal_snr)
        self.schedule = NoiseSchedule(chosen_schedule(beta_schedule, schedule_fn_kwargs), timesteps, zero_terminal_snr)
        self.loss = DiffusionLoss(
            self.schedule,
            self._objective,
            chosen_weighting(weighting, min_snr_loss_weight, min_snr_gamma),
            choose(LossChoice, loss, "loss") if isinstance(loss, str) else loss,
            offset_noise_strength=offset_noise_strength,
            immiscible=immiscible,
        )
        steps = timesteps if sampling_timesteps is None else sampling_timesteps
        check_default_sampler(steps, ddim_sampling_eta, timesteps)
        self._ddim = DDIM(steps=steps, eta=ddim_sampling_eta)
        self.sampler: Sampler = self._ddim if steps < timesteps else DDPM()

    def __getattr__(self, name: str) -> Any:
        if name in OF_SCHEDULE:
            return getattr(self.schedule, name)
        if name in OF_LOSS:
            return getattr(self.loss, name)
        if name in OF_DDIM:
            return getattr(self._ddim, OF_DDIM[name])
        if name in OF_MODEL:
            return getattr(self.model, name, self._of_model[name])
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in OF_SCHEDULE | OF_LOSS | OF_MODEL.keys() | OF_DDIM.keys():
            raise AttributeError(f"{name} cannot be set: build a new {type(self).__name__} with other arguments")
        super().__setattr__(name, value)

    @property
    def objective(self) -> str:
        """What the network predicts."""
        return self._objective.name

    @property
    def is_ddim_sampling(self) -> bool:
        """Whether the default sampler as built is DDIM."""
        return bool(self._ddim.steps < self.num_timesteps)

    @property
    def denoiser(self) -> Denoiser:
        """The `Denoiser` of `model`; built at each access, so that `model` can be replaced or wrapped."""
        parts = (self.model, self.schedule, self._objective, self.variance)
        return Denoiser(*parts, **{name: getattr(self, name) for name in OF_MODEL})

    def normalize(self, images: Tensor) -> Tensor:
        """Map [0, 1] to [-1, 1] if `auto_normalize`, else return the images unchanged."""
        return images * 2.0 - 1.0 if self.auto_normalize else images

    def unnormalize(self, images: Tensor) -> Tensor:
        """Map [-1, 1] to [0, 1] if `auto_normalize`, else return the images unchanged."""
        return (images + 1.0) * 0.5 if self.auto_normalize else images

    def checked_classes(self, classes: Tensor | None, batch_size: int) -> Tensor | None:
        """Return labels, int64 (B,), on the process's device; see `process/checks.py`."""
        return checked_classes(classes, batch_size, self.num_classes, self.schedule.device)

    def model_predictions(
        self,
        x: Tensor,
        t: Tensor,
        x_self_cond: Tensor | None = None,
        clip_x_start: bool = False,
        rederive_pred_noise: bool = False,
        *,
        classes: Tensor | None = None,
    ) -> ModelPrediction | LearnedModelPrediction:
        """Run the network at (x_t, t) and return the noise, x0-hat and a learned variance.

        Args:
            x: x_t, (B, C, H, W).
            t: timesteps, (B,).
            x_self_cond: the previous x0-hat for a self-conditioned network, or None for zeros.
            clip_x_start: clip x0-hat to [-1, 1].
            rederive_pred_noise: compute the noise from the clipped x0-hat for pred_noise too; other objectives do so.
            classes: labels, (B,), for a class-conditional network; None for the unconditional prediction.
        """
        x0, noise, variance = self.denoiser(x, t, Conditioning(classes, x_self_cond), clip=False)
        if clip_x_start:
            x0 = x0.clamp(-1.0, 1.0)
            if rederive_pred_noise or self.objective != "pred_noise":
                noise = self.schedule.noise_from_x0(x, t, x0)
        return ModelPrediction(noise, x0) if variance is None else LearnedModelPrediction(noise, x0, variance)

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
        return self.denoiser.posterior(x, t, Conditioning(classes, x_self_cond), clip=clip_denoised)

    @sampling.inference
    def p_sample(
        self, x: Tensor, t: int, x_self_cond: Tensor | None = None, *, classes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return a sample of x_{t-1} given x_t, without noise at t = 0, and x0-hat."""
        trajectory = Trajectory(self.denoiser, classes, x_self_cond)
        x_next = DDPM().step(self.schedule, trajectory, x, int(t), int(t) - 1, torch.randn_like)
        assert trajectory.previous is not None
        return x_next, trajectory.previous[1]

    def p_losses(
        self,
        x_start: Tensor,
        t: Tensor,
        noise: Tensor | None = None,
        offset_noise_strength: float | None = None,
        loss_reduction: str = "mean",
        *,
        classes: Tensor | None = None,
        self_cond_mask: Tensor | None = None,
        unlabelled: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return `DiffusionLoss.forward` of images in [-1, 1] at t: its mean, or (B,) if `loss_reduction` is "none".

        Raises:
            ValueError: the shape of the images is not that of the process, or an argument is out of range.
        """
        check_images(x_start, self._image_shape)
        if loss_reduction not in ("mean", "none"):
            raise ValueError(f"loss_reduction is {loss_reduction!r}; it must be mean or none")
        losses: Tensor = self.loss(
            self.denoiser,
            x_start,
            t,
            noise,
            offset_noise_strength=offset_noise_strength,
            classes=classes,
            self_cond_mask=self_cond_mask,
            unlabelled=unlabelled,
            generator=generator,
        )
        return losses.mean() if loss_reduction == "mean" else losses

    def forward(
        self,
        img: Tensor,
        *args: Any,
        times: Tensor | None = None,
        loss_reduction: str = "mean",
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return `p_losses` of images, in [0, 1] if `auto_normalize`, at `times`, int64 (B,), random ones if None.

        Raises:
            ValueError: as for `p_losses`; a label is out of range, or the first images are surely not in [0, 1].
        """
        check_images(img, self._image_shape)
        if self.auto_normalize and not self._has_checked_values:
            self._has_checked_values = has_checked_values(img)
        if kwargs.get("classes") is not None:
            kwargs["classes"] = self.checked_classes(kwargs["classes"], len(img))
        times = self.random_times(len(img), generator) if times is None else times
        kwargs |= {"loss_reduction": loss_reduction, "generator": generator}
        return self.p_losses(self.normalize(img), times, *args, **kwargs)

    def random_times(self, batch_size: int, generator: torch.Generator | None = None) -> Tensor:
        """Return timesteps sampled uniformly from 0 .. T-1, int64 (B,)."""
        return torch.randint(0, self.num_timesteps, (batch_size,), generator=generator, device=self.device)

    def noise_assignment(self, x_start: Tensor, noise: Tensor) -> Tensor:
        """Return the index of each image's noise if the process is `immiscible`, int64 (B,)."""
        return assign_noise(x_start, noise)

    # Defined in process/conversions.py and process/sampling.py.
    predict_start_from_noise = conversions.predict_start_from_noise
    predict_noise_from_start = conversions.predict_noise_from_start
    predict_v = conversions.predict_v
    predict_start_from_v = conversions.predict_start_from_v
    q_sample = conversions.q_sample
    q_posterior = conversions.q_posterior
    sample = sampling.sample
    resample = sampling.resample
    inpaint = sampling.inpaint
    interpolate = sampling.interpolate
    p_sample_loop = sampling.p_sample_loop
    ddim_sample = sampling.ddim_sample
