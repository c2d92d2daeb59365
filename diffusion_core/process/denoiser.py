"""From the network's output to a prediction: the only caller of a network."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffusion_core.process.noise_schedule import Coefficients, NoiseSchedule
from diffusion_core.process.objectives import Objective
from diffusion_core.process.variance import Variance
from diffusion_core.samplers.protocols import Conditioning, Prediction


class ModelPrediction(NamedTuple):
    """A prediction under denoising-diffusion-pytorch's names: the noise and the clean image, both (B, C, H, W)."""

    pred_noise: Tensor
    pred_x_start: Tensor


class LearnedModelPrediction(NamedTuple):
    """The same of a network that has learned the variance too; see `Prediction.variance`."""

    pred_noise: Tensor
    pred_x_start: Tensor
    pred_variance: Tensor


@dataclass(frozen=True)
class Denoiser:
    """A network, and what its output means.

    Attributes:
        network: called as `network(x_t, t, x_self_cond)`, or with `classes` after it where it has `num_classes`.
        schedule: of the noise.
        objective: what the output is a prediction of.
        variance: what the output says of the variance.
    """

    network: nn.Module
    schedule: NoiseSchedule
    objective: Objective
    variance: Variance

    @property
    def self_condition(self) -> bool:
        """Whether the network takes the previous x0-hat."""
        return bool(self.network.self_condition)

    @property
    def num_classes(self) -> int | None:
        """How many labels the network knows, or None."""
        network: Any = self.network
        return getattr(network, "num_classes", None)

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor | float,
        conditioning: Conditioning = Conditioning(),  # noqa: B008 - immutable
        *,
        clip: bool = True,
    ) -> Prediction:
        """Run the network at (x_t, t) and convert its output.

        Args:
            x_t: (B, C, H, W).
            t: timesteps, (B,), or the one of all images.
            conditioning: what the network is told besides.
            clip: clip x0-hat to [-1, 1]; the noise agrees with what is clipped.

        Raises:
            ValueError: there are classes, and the network takes none.
        """
        if not isinstance(t, Tensor):
            dtype = torch.long if isinstance(t, int) else torch.promote_types(x_t.dtype, torch.float32)
            t = torch.full((len(x_t),), t, device=x_t.device, dtype=dtype)
        output, variance = self.output(x_t, t, conditioning)
        at = self.schedule.at(t, x_t)
        x0 = self.x0(output, x_t, at, clip=clip)
        keeps_output = self.objective.name == "pred_noise" and not clip
        return Prediction(x0, output if keeps_output else at.noise_from_x0(x_t, x0), variance)

    def output(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> tuple[Tensor, Tensor | None]:
        """Return the network's output for the objective, and for the variance where that is learned."""
        classes, x_self_cond = conditioning
        if self.num_classes is not None:
            output = self.network(x_t, t, x_self_cond, classes)
        elif classes is None:
            output = self.network(x_t, t, x_self_cond)
        else:
            raise ValueError("classes are given, but the network has no num_classes: leave them out")
        # Under autocast it comes in a lower precision, in which nothing else is to be computed.
        return self.variance.split(output.to(x_t.dtype))

    def x0(self, output: Tensor, x_t: Tensor, at: Coefficients, *, clip: bool) -> Tensor:
        """Return the clean image that an output stands for."""
        x0 = self.objective.x0(x_t, output, at)
        return x0.clamp(-1.0, 1.0) if clip else x0

    def posterior(
        self, x_t: Tensor, t: Tensor, conditioning: Conditioning, *, clip: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return mean, variance and log variance of p(x_{t-1} | x_t), and x0-hat."""
        prediction = self(x_t, t, conditioning, clip=clip)
        mean = self.schedule.q_posterior(prediction.x0, x_t, t)[0]
        return mean, *self.variance.of(prediction.variance, t, self.schedule, x_t), prediction.x0
