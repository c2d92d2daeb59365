"""From noise to image: the network's prediction, and the step of the model that follows from it."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diffusion_core.process.forward_process import ForwardProcess
from diffusion_core.process.objectives import OBJECTIVES, noise_from_x0
from diffusion_core.process.schedules import BetaSchedule
from diffusion_core.samplers import LearnedModelPrediction, ModelPrediction


class ReverseProcess(ForwardProcess):
    """A process with a denoising network; arguments as in `GaussianDiffusion`.

    Raises:
        ValueError: the objective is unknown or cannot start from pure noise, the network's output has another number
            of channels than the process asks for, or it cannot halve images of that size.
    """

    # The network's output in multiples of the images' channels.
    outputs_per_channel: ClassVar[int] = 1

    def __init__(
        self,
        model: nn.Module,
        image_size: int | tuple[int, int],
        beta_schedule: BetaSchedule,
        timesteps: int,
        objective: str,
        auto_normalize: bool,
        zero_terminal_snr: bool,
    ) -> None:
        if objective not in OBJECTIVES:
            raise ValueError(f"objective is {objective!r}; it must be one of {', '.join(OBJECTIVES)}")
        if zero_terminal_snr and objective == "pred_noise":
            raise ValueError(
                "objective is 'pred_noise'; with zero_terminal_snr it must be pred_v or pred_x0, because noise says"
                " nothing of the image where there is nothing else"
            )
        super().__init__(beta_schedule, timesteps, zero_terminal_snr)
        self.model = model
        network: Any = model
        self.channels: int = network.channels
        self.self_condition: bool = network.self_condition
        self.num_classes: int | None = getattr(network, "num_classes", None)
        wanted = self.channels * self.outputs_per_channel
        if network.out_dim != wanted:
            raise ValueError(
                f"out_dim is {network.out_dim}; {type(self).__name__} needs {wanted} for images of {self.channels}"
                " channels"
            )
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        factor: int = getattr(network, "downsample_factor", 1)
        if len(self.image_size) != 2 or any(side < 1 or side % factor for side in self.image_size):
            raise ValueError(f"image_size is {self.image_size}; it must be two multiples of {factor} for this network")
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
                raise ValueError("classes are given, but the network has no num_classes: leave them out")
            output: Tensor = self.model(x, t, x_self_cond)
        else:
            output = self.model(x, t, x_self_cond, classes)
        # Under autocast it comes in a lower precision, in which nothing else is to be computed.
        return output.to(x.dtype)

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
        """Run the network at (x_t, t) and return a `ModelPrediction`: the noise and x0-hat.

        Args:
            x: x_t, (B, C, H, W).
            t: timesteps, (B,).
            x_self_cond: the previous x0-hat for a self-conditioned network, or None for zeros.
            clip_x_start: clip x0-hat to [-1, 1].
            rederive_pred_noise: let a noise prediction agree with the clipped x0-hat; the other objectives always do.
            classes: labels, (B,), for a class-conditional network; None for the unconditional prediction.
        """
        output = self._network(x, t, x_self_cond, classes)
        return self._convert(output, x, t, clip_x_start, rederive_pred_noise)

    def _convert(self, output: Tensor, x: Tensor, t: Tensor, clip: bool, rederive: bool) -> ModelPrediction:
        at = self._at(t, x)
        x0 = self._objective.x0(x, output, at)
        if clip:
            x0 = x0.clamp(-1.0, 1.0)
        keeps_output = self.objective == "pred_noise" and not (clip and rederive)
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
