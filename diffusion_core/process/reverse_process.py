"""From noise to image: the network's prediction, and the steps that follow from it."""

from typing import Any

import torch
from torch import Tensor, nn

from diffusion_core.process.forward_process import ForwardProcess
from diffusion_core.process.objectives import OBJECTIVES, noise_from_x0
from diffusion_core.process.schedules import BetaSchedule
from diffusion_core.samplers import Draw, ModelPrediction, Sampler, sample_loop


class ReverseProcess(ForwardProcess):
    """A process with a denoising network; arguments as in `GaussianDiffusion`.

    Raises:
        ValueError: the objective is unknown, the network does not give back its own channels, or the sampler cannot
            walk that many timesteps.
    """

    def __init__(
        self,
        model: nn.Module,
        image_size: int | tuple[int, int],
        beta_schedule: BetaSchedule,
        timesteps: int,
        objective: str,
        auto_normalize: bool,
        sampler: Sampler,
    ) -> None:
        if objective not in OBJECTIVES:
            raise ValueError(f"objective is {objective!r}; it must be one of {', '.join(OBJECTIVES)}")
        super().__init__(beta_schedule, timesteps)
        sampler.transitions(timesteps)
        self.sampler = sampler
        self.model = model
        network: Any = model
        self.channels: int = network.channels
        self.self_condition: bool = network.self_condition
        self.num_classes: int | None = getattr(network, "num_classes", None)
        if network.out_dim != self.channels:
            raise ValueError(f"out_dim is {network.out_dim}; the network must give back its {self.channels} channels")
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        self.objective = objective
        self.auto_normalize = auto_normalize
        self._objective = OBJECTIVES[objective]

    def normalize(self, images: Tensor) -> Tensor:
        """Map [0, 1] to [-1, 1] where `auto_normalize`."""
        return images * 2.0 - 1.0 if self.auto_normalize else images

    def unnormalize(self, images: Tensor) -> Tensor:
        """Map [-1, 1] to [0, 1] where `auto_normalize`."""
        return (images + 1.0) * 0.5 if self.auto_normalize else images

    def _network(self, x: Tensor, t: Tensor, x_self_cond: Tensor | None, classes: Tensor | None) -> Tensor:
        if self.num_classes is None:
            if classes is not None:
                raise ValueError("classes are given, but the network has no num_classes")
            output: Tensor = self.model(x, t, x_self_cond)
        else:
            output = self.model(x, t, x_self_cond, classes)
        return output

    def model_predictions(
        self,
        x: Tensor,
        t: Tensor,
        x_self_cond: Tensor | None = None,
        clip_x_start: bool = False,
        rederive_pred_noise: bool = False,
        *,
        classes: Tensor | None = None,
    ) -> ModelPrediction:
        """Run the network at (x_t, t) and convert its output to noise and x0.

        Args:
            x: x_t, (B, C, H, W).
            t: timesteps, (B,).
            x_self_cond: the previous x0-hat for a self-conditioned network, or None for zeros.
            clip_x_start: clip x0-hat to [-1, 1].
            rederive_pred_noise: let a noise prediction agree with the clipped x0-hat; the other objectives always do.
            classes: labels, (B,), for a class-conditional network; None for the unconditional prediction.
        """
        output = self._network(x, t, x_self_cond, classes)
        at = self._at(t, x)
        x0 = self._objective.x0(x, output, at)
        if clip_x_start:
            x0 = x0.clamp(-1.0, 1.0)
        keeps_output = self.objective == "pred_noise" and not (clip_x_start and rederive_pred_noise)
        return ModelPrediction(output if keeps_output else noise_from_x0(x, x0, at), x0)

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
        x0 = self.model_predictions(x, t, x_self_cond, classes=classes).pred_x_start
        if clip_denoised:
            x0 = x0.clamp(-1.0, 1.0)
        return (*self.q_posterior(x0, x, t), x0)

    @torch.inference_mode()
    def p_sample(
        self, x: Tensor, t: int, x_self_cond: Tensor | None = None, *, classes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return a draw of x_{t-1} given x_t, without noise at t = 0, and x0-hat."""
        times = torch.full((len(x),), t, device=x.device, dtype=torch.long)
        mean, _, log_variance, x0 = self.p_mean_variance(x, times, x_self_cond, classes=classes)
        return (mean + (0.5 * log_variance).exp() * torch.randn_like(x) if t > 0 else mean), x0

    @torch.inference_mode()
    def sample(
        self,
        batch_size: int = 16,
        return_all_timesteps: bool = False,
        *,
        sampler: Sampler | None = None,
        noise: Tensor | None = None,
        draw: Draw = torch.randn_like,
        classes: Tensor | None = None,
        guidance_scale: float = 1.0,
    ) -> Tensor:
        """Return new images, (B, C, H, W), in [0, 1] where `auto_normalize`.

        Args:
            batch_size: B.
            return_all_timesteps: return (B, S + 1, C, H, W), the starting noise first and the image last.
            sampler: the process's own if not given.
            noise: the x_T to start from, (B, C, H, W); drawn if not given.
            draw: source of all noise; `samplers.noise.ImageNoise` gives each image a seed of its own.
            classes: labels, (B,), int64, for a class-conditional network.
            guidance_scale: classifier-free guidance; 1 for none.

        Raises:
            ValueError: the sampler does not fit the process, a label is out of range, or guidance lacks classes.
        """
        if classes is not None:
            self._check_classes(classes, batch_size)
            classes = classes.to(self.device)
        x_t = draw(self.betas.new_empty((batch_size, self.channels, *self.image_size))) if noise is None else noise
        steps = [x_t] if return_all_timesteps else []
        for x_t in sample_loop(  # noqa: B020 - x_t is the state of the walk
            self, sampler or self.sampler, x_t, draw=draw, classes=classes, guidance_scale=guidance_scale
        ):
            if return_all_timesteps:
                steps.append(x_t)
        return self.unnormalize(torch.stack(steps, dim=1) if return_all_timesteps else x_t)

    @torch.inference_mode()
    def interpolate(self, x1: Tensor, x2: Tensor, t: int | None = None, lam: float = 0.5) -> Tensor:
        """Return the images between two: noised to t, mixed by `lam`, and denoised (Ho et al. 2020, section 4.4).

        x1, x2 and the result are worked on as they are, in [-1, 1]; t defaults to T - 1.
        """
        t = self.num_timesteps - 1 if t is None else t
        if x1.shape != x2.shape:
            raise ValueError(f"x1 and x2 have the shapes {tuple(x1.shape)} and {tuple(x2.shape)}; they must be equal")
        times = torch.full((len(x1),), t, device=x1.device, dtype=torch.long)
        x_t = (1.0 - lam) * self.q_sample(x1, times) + lam * self.q_sample(x2, times)
        x0: Tensor | None = None
        for step in reversed(range(t)):
            x_t, x0 = self.p_sample(x_t, step, x0 if self.self_condition else None)
        return x_t

    def _check_classes(self, classes: Tensor, batch_size: int) -> None:
        if self.num_classes is None:
            raise ValueError("classes are given, but the network has no num_classes")
        if classes.shape != (batch_size,):
            raise ValueError(f"classes has the shape {tuple(classes.shape)}; it must be {(batch_size,)}")
        if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < self.num_classes:
            raise ValueError(f"classes has labels outside 0 .. {self.num_classes - 1}")
