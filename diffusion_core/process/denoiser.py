"""Converts a network's output to a prediction. Only the self-check calls a network past it."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from diffusion_core.process.noise_schedule import Coefficients, NoiseSchedule
from diffusion_core.process.objectives import Objective
from diffusion_core.process.variance import Variance
from diffusion_core.samplers.protocols import Conditioning, Prediction, batch_times


class ModelPrediction(NamedTuple):
    """A prediction with denoising-diffusion-pytorch's names.

    Attributes:
        pred_noise: the noise, (B, C, H, W).
        pred_x_start: x0-hat, (B, C, H, W).
    """

    pred_noise: Tensor
    pred_x_start: Tensor


class LearnedModelPrediction(NamedTuple):
    """A prediction of a network that also learned the variance.

    Attributes:
        pred_noise: the noise, (B, C, H, W).
        pred_x_start: x0-hat, (B, C, H, W).
        pred_variance: see `Prediction.variance`.
    """

    pred_noise: Tensor
    pred_x_start: Tensor
    pred_variance: Tensor


@dataclass(frozen=True)
class Denoiser:
    """A network and the meaning of its output.

    Attributes:
        network: called as `network(x_t, t, x_self_cond)`, or with `classes` after that if `num_classes` is given.
        schedule: the noise schedule.
        objective: the quantity that the network predicts.
        variance: fixed, or learned by the network.
        self_condition: whether the network takes the previous x0-hat as an input.
        num_classes: number of classes of the network, or None if it is unconditional.
        cond_drop_prob: share of the labels that training replaces by the null class, `num_classes`.
    """

    network: nn.Module
    schedule: NoiseSchedule
    objective: Objective
    variance: Variance
    self_condition: bool = False
    num_classes: int | None = None
    cond_drop_prob: float = 0.0

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
            t: timesteps, (B,), or one timestep for all images.
            conditioning: labels and the previous x0-hat.
            clip: clip x0-hat to [-1, 1]; the noise is computed from the clipped x0-hat.

        Raises:
            ValueError: classes are given, and the network takes none.
        """
        if not isinstance(t, Tensor):
            t = batch_times(t, x_t)
        output, variance = self.output(x_t, t, conditioning)
        at = self.schedule.at(t, x_t)
        x0 = self.x0(output, x_t, at, clip=clip)
        keeps_output = self.objective.name == "pred_noise" and not clip
        return Prediction(x0, output if keeps_output else at.noise_from_x0(x_t, x0), variance)

    def output(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> tuple[Tensor, Tensor | None]:
        """Return the network's output for the objective, and for the variance if that is learned, else None."""
        classes, x_self_cond = conditioning
        if self.num_classes is not None:
            output = self.network(x_t, t, x_self_cond, classes)
        elif classes is None:
            output = self.network(x_t, t, x_self_cond)
        else:
            raise ValueError("classes are given, but the network has no num_classes: leave them out")
        # Autocast returns a lower precision; all further computation is in the precision of x_t.
        return self.variance.split(output.to(x_t.dtype))

    def x0(self, output: Tensor, x_t: Tensor, at: Coefficients, *, clip: bool) -> Tensor:
        """Return x0-hat, (B, C, H, W), computed from an output; `clip` clips it to [-1, 1]."""
        x0 = self.objective.x0(x_t, output, at)
        return x0.clamp(-1.0, 1.0) if clip else x0

    def posterior(
        self, x_t: Tensor, t: Tensor, conditioning: Conditioning, *, clip: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return mean, variance and log variance of p(x_{t-1} | x_t), and x0-hat."""
        prediction = self(x_t, t, conditioning, clip=clip)
        mean = self.schedule.q_posterior(prediction.x0, x_t, t)[0]
        return mean, *self.variance.of(prediction.variance, t, self.schedule, x_t), prediction.x0
