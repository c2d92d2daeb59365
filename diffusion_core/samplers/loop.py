"""The one loop that drives all samplers, and the network as they see it."""

from collections.abc import Iterator

import torch
from torch import Tensor

from diffusion_core.samplers import Denoised, Draw, LearnedModelPrediction, ModelPrediction, Process, Sampler
from diffusion_core.samplers.guidance import Guidance


class Denoiser:
    """Gives clipped x0-hat, guided, with the previous x0-hat fed back to a self-conditioned network.

    Clipping comes after guidance, so that it acts on the image that is used.

    Raises:
        ValueError: guidance without classes, or a number in its place.
    """

    def __init__(self, process: Process, classes: Tensor | None, guidance: Guidance) -> None:
        if not isinstance(guidance, Guidance):
            raise ValueError(f"guidance is {guidance!r}; it must be a Guidance, Guidance(scale=2.0) say")
        if guidance.scale != 1.0 and classes is None:
            raise ValueError(
                f"guidance.scale is {guidance.scale}; guidance needs classes, so it must be 1 without them"
            )
        self.previous: tuple[float, Tensor] | None = None
        self._process = process
        self._classes = classes
        # The label that stands for none.
        self._nobody = None if classes is None else torch.full_like(classes, process.num_classes or 0)
        self._guidance = guidance

    def __call__(self, x_t: Tensor, t: float) -> Denoised:
        dtype = torch.long if isinstance(t, int) else torch.promote_types(x_t.dtype, torch.float32)
        times = torch.full((len(x_t),), t, device=x_t.device, dtype=dtype)
        fed_back = self.previous[1] if self._process.self_condition and self.previous is not None else None
        guided = self._guidance.acts_at(self._process.alpha_bar(t))
        if guided and self._guidance.scale != 0.0:
            denoised = self._blended(x_t, times, fed_back)
        else:
            classes = self._nobody if guided else self._classes
            prediction = self._process.model_predictions(
                x_t, times, fed_back, clip_x_start=True, rederive_pred_noise=True, classes=classes
            )
            denoised = Denoised(prediction.pred_noise, prediction.pred_x_start, _variance(prediction))
        self.previous = (t, denoised.x0)
        return denoised

    def _blended(self, x_t: Tensor, times: Tensor, fed_back: Tensor | None) -> Denoised:
        assert self._classes is not None
        assert self._nobody is not None
        prediction = self._process.model_predictions(
            torch.cat((x_t, x_t)),
            torch.cat((times, times)),
            None if fed_back is None else torch.cat((fed_back, fed_back)),
            classes=torch.cat((self._classes, self._nobody)),
        )
        guided = self._guidance.blend(*prediction.pred_x_start.chunk(2)).clamp(-1.0, 1.0)
        noise = self._process.predict_noise_from_start(x_t, times, guided)
        # A variance is nothing to blend: it is that of the label.
        variance = _variance(prediction)
        return Denoised(noise, guided, None if variance is None else variance[: len(x_t)])


def _variance(prediction: ModelPrediction | LearnedModelPrediction) -> Tensor | None:
    return (prediction.pred_variance + 1.0) * 0.5 if isinstance(prediction, LearnedModelPrediction) else None


def sample_loop(
    process: Process,
    sampler: Sampler,
    x_t: Tensor,
    *,
    draw: Draw = torch.randn_like,
    classes: Tensor | None = None,
    guidance: Guidance = Guidance(),  # noqa: B008 - frozen
) -> Iterator[Tensor]:
    """Yield x after each transition, the clean image in [-1, 1] last.

    Args:
        process: the diffusion process and its network.
        sampler: the way from noise to image.
        x_t: standard normal noise, (B, C, H, W).
        draw: source of the noise that the sampler adds on the way.
        classes: labels, (B,), int64, for a class-conditional network.
        guidance: how strongly images are pushed towards their labels.

    Raises:
        ValueError: guidance without classes, or the sampler cannot walk the process's schedule.
    """
    denoise = Denoiser(process, classes, guidance)
    for t, t_next in sampler.transitions(process):
        x_t = sampler.step(process, denoise, x_t, t, t_next, draw)
        yield x_t
