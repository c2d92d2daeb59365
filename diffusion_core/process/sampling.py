"""Sampling, resampling, inpainting and interpolation of images.

Each function is the method of `GaussianDiffusion` with the same name, so its first argument is `self`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from diffusion_core.process.checks import check_images, checked_mask
from diffusion_core.samplers.ddpm import DDPM
from diffusion_core.samplers.guidance import Guidance, GuidedDenoiser
from diffusion_core.samplers.loop import Trajectory, sample_loop
from diffusion_core.samplers.protocols import Randn, Sampler
from diffusion_core.samplers.repaint import inpaint_loop

if TYPE_CHECKING:
    from diffusion_core.process.gaussian_diffusion import GaussianDiffusion

P = ParamSpec("P")
Result = TypeVar("Result")


def inference(
    method: Callable[Concatenate["GaussianDiffusion", P], Result],
) -> Callable[Concatenate["GaussianDiffusion", P], Result]:
    """Let a method run in eval mode, without dropout, and without gradients; each module then has its mode again."""

    @wraps(method)
    def run(self: "GaussianDiffusion", /, *args: P.args, **kwargs: P.kwargs) -> Result:
        training = [module for module in self.modules() if module.training]
        if training:
            self.eval()
        try:
            with torch.inference_mode():
                return method(self, *args, **kwargs)
        finally:
            for module in training:
                module.training = True

    return run


@inference
def sample(
    self: "GaussianDiffusion",
    batch_size: int = 16,
    return_all_timesteps: bool = False,
    *,
    sampler: Sampler | None = None,
    noise: Tensor | None = None,
    randn: Randn = torch.randn_like,
    classes: Tensor | None = None,
    guidance: Guidance = Guidance(),  # noqa: B008 - frozen
) -> Tensor:
    """Return new images, (B, C, H, W), in [0, 1] if `auto_normalize`, else in [-1, 1].

    Args:
        batch_size: B, at least 1.
        return_all_timesteps: return (B, S + 1, C, H, W), the starting noise first and the image last.
        sampler: that of the process if None.
        noise: x_T, (B, C, H, W); random if None.
        randn: source of all noise; `samplers.noise.ImageNoise` seeds each image separately.
        classes: labels, int64 (B,), for a class-conditional network.
        guidance: classifier-free guidance; off by default.

    Raises:
        ValueError: the sampler does not fit the process, the noise has another shape, a label is out of range, or
            there is guidance without classes.
    """
    steps = sample_steps(
        self, batch_size, sampler=sampler, noise=noise, randn=randn, classes=classes, guidance=guidance
    )
    return _finish(next(steps), steps, return_all_timesteps)


def sample_steps(
    self: "GaussianDiffusion",
    batch_size: int,
    *,
    sampler: Sampler | None = None,
    noise: Tensor | None = None,
    randn: Randn = torch.randn_like,
    classes: Tensor | None = None,
    guidance: Guidance = Guidance(),  # noqa: B008 - frozen
) -> Iterator[Tensor]:
    """Yield the starting noise of `sample` and then the images after each step, the clean ones last.

    All are (B, C, H, W), in the range of `sample`. Call it within `torch.inference_mode()`.

    Raises:
        ValueError: as for `sample`.
    """
    if isinstance(sampler, str | type):
        raise ValueError(f"sampler is {sampler!r}; it must be an object, for example DDIM(steps=50)")
    denoiser = GuidedDenoiser(self.denoiser, guidance)
    classes = self.checked_classes(classes, batch_size)
    x_t = _starting_noise((batch_size, *self._image_shape), noise, randn, self.betas)
    yield self.unnormalize(x_t)
    for x in sample_loop(denoiser, sampler or self.sampler, x_t, classes=classes, randn=randn):
        yield self.unnormalize(x)


@inference
def resample(
    self: "GaussianDiffusion",
    images: Tensor,
    t: int,
    *,
    sampler: Sampler | None = None,
    randn: Randn = torch.randn_like,
    classes: Tensor | None = None,
    guidance: Guidance = Guidance(),  # noqa: B008 - frozen
) -> Tensor:
    """Return images that are noised to timestep t and denoised again (SDEdit, Meng et al. 2021).

    The images resemble the given ones, the less the greater t is (https://arxiv.org/abs/2108.01073).

    Args:
        images: (B, C, H, W), in [0, 1] if `auto_normalize`, else in [-1, 1].
        t: in 0 .. T-1; denoising begins at the sampler's greatest timestep that is not greater.
        sampler: that of the process if None.
        randn: as for `sample`.
        classes: as for `sample`.
        guidance: as for `sample`.

    Raises:
        ValueError: as for `sample`; or the images have another shape, or the sampler has no timestep up to t.
    """
    check_images(images, self._image_shape)
    sampler = sampler or self.sampler
    times = [time for time, _ in sampler.transitions(self.schedule) if time <= t]
    if not (0 <= t < self.num_timesteps and times):
        raise ValueError(
            f"t is {t}; it must lie in 0 .. {self.num_timesteps - 1}, and the sampler needs a timestep up to it"
        )
    alpha_bar = self.schedule.alpha_bar(times[0])
    x0 = self.normalize(images.to(self.betas))
    x_t = math.sqrt(alpha_bar) * x0 + math.sqrt(1.0 - alpha_bar) * randn(x0)
    denoiser = GuidedDenoiser(self.denoiser, guidance)
    classes = self.checked_classes(classes, len(images))
    steps = sample_loop(denoiser, sampler, x_t, classes=classes, randn=randn, begin=t)
    return self.unnormalize(_finish(x_t, steps, return_all_timesteps=False))


@inference
def inpaint(
    self: "GaussianDiffusion",
    images: Tensor,
    mask: Tensor,
    *,
    sampler: Sampler | None = None,
    randn: Randn = torch.randn_like,
    jump_length: int = 10,
    resamplings: int = 10,
    return_all_timesteps: bool = False,
    noise: Tensor | None = None,
    classes: Tensor | None = None,
    guidance: Guidance = Guidance(),  # noqa: B008 - frozen
) -> Tensor:
    """Return the images with their unknown pixels sampled (RePaint, Lugmayr et al. 2022).

    Args:
        images: (B, C, H, W), in [0, 1] if `auto_normalize`, else in [-1, 1].
        mask: 1 for a known pixel, 0 for a pixel to sample; broadcasts to the shape of the images.
        sampler: one that is not multistep; that of the process if None.
        jump_length: steps from one noise level back to a higher one.
        resamplings: how often each segment of `jump_length` steps is sampled; 1 is fastest and fits the known pixels
            worst.
        return_all_timesteps: as for `sample`; includes the jumps back.
        noise: as for `sample`.
        randn: as for `sample`.
        classes: as for `sample`.
        guidance: as for `sample`.

    Raises:
        ValueError: as for `sample`; or images or mask have another shape, or the sampler is a multistep one.
    """
    check_images(images, self._image_shape)
    known = checked_mask(mask, images, self.device)
    denoiser = GuidedDenoiser(self.denoiser, guidance)
    classes = self.checked_classes(classes, len(images))
    x_t = _starting_noise((len(images), *self._image_shape), noise, randn, self.betas)
    steps = inpaint_loop(
        denoiser,
        sampler or self.sampler,
        x_t,
        self.normalize(images.to(x_t)),
        known,
        jump_length=jump_length,
        resamplings=resamplings,
        classes=classes,
        randn=randn,
    )
    return self.unnormalize(_finish(x_t, steps, return_all_timesteps))


@inference
def interpolate(
    self: "GaussianDiffusion",
    x1: Tensor,
    x2: Tensor,
    t: int | None = None,
    lam: float = 0.5,
    *,
    classes: Tensor | None = None,
) -> Tensor:
    """Return interpolated images in [-1, 1]: noised to t, mixed by `lam`, denoised (Ho et al. 2020, section 4.4).

    Denoising begins at t - 1, as in denoising-diffusion-pytorch.

    Args:
        x1: images in [-1, 1], (B, C, H, W).
        x2: images in [-1, 1], (B, C, H, W).
        t: timestep of the noised images, in 0 .. T-1; T - 1 if None.
        lam: weight of x2; x1 has the weight 1 - lam.
        classes: labels, int64 (B,), for a class-conditional network.

    Raises:
        ValueError: the shapes differ, or t or a label is out of range.
    """
    t = self.num_timesteps - 1 if t is None else t
    if x1.shape != x2.shape:
        raise ValueError(f"x1 and x2 have the shapes {tuple(x1.shape)} and {tuple(x2.shape)}; they must be equal")
    check_images(x1, self._image_shape)
    if not 0 <= t < self.num_timesteps:
        raise ValueError(f"t is {t}; it must lie in 0 .. {self.num_timesteps - 1}")
    times = torch.full((len(x1),), t, device=x1.device, dtype=torch.long)
    x_t = (1.0 - lam) * self.q_sample(x1, times) + lam * self.q_sample(x2, times)
    trajectory = Trajectory(self.denoiser, self.checked_classes(classes, len(x1)))
    for step in reversed(range(t)):
        x_t = DDPM().step(self.schedule, trajectory, x_t, step, step - 1, torch.randn_like)
    return x_t


def p_sample_loop(self: "GaussianDiffusion", shape: Sequence[int], return_all_timesteps: bool = False) -> Tensor:
    """Return the images of `sample` with DDPM; `shape` is (B, C, H, W)."""
    return self.sample(_batch_size(self, shape), return_all_timesteps, sampler=DDPM())


def ddim_sample(self: "GaussianDiffusion", shape: Sequence[int], return_all_timesteps: bool = False) -> Tensor:
    """Return the images of `sample` with DDIM in `sampling_timesteps` steps; `shape` is (B, C, H, W)."""
    ddim = self._ddim
    return self.sample(_batch_size(self, shape), return_all_timesteps, sampler=ddim)


def _batch_size(self: "GaussianDiffusion", shape: Sequence[int]) -> int:
    if tuple(shape[1:]) != self._image_shape:
        raise ValueError(f"shape is {tuple(shape)}; after the first number it must be {self._image_shape}")
    return shape[0]


def _starting_noise(shape: tuple[int, ...], noise: Tensor | None, randn: Randn, like: Tensor) -> Tensor:
    """Return x_T with the device and dtype of `like`: `noise`, or new noise if None.

    Raises:
        ValueError: the batch is empty, or the noise has another shape.
    """
    if shape[0] < 1:
        raise ValueError(f"batch_size is {shape[0]}; it must be at least 1")
    if noise is None:
        return randn(like.new_empty(shape))
    if noise.shape != shape:
        raise ValueError(f"noise is {tuple(noise.shape)}; it must be {shape}")
    return noise.to(like)


def _finish(x_t: Tensor, steps: Iterator[Tensor], return_all_timesteps: bool) -> Tensor:
    """Run all steps; return the last x, or every x including `x_t`, (B, S + 1, C, H, W)."""
    if return_all_timesteps:
        return torch.stack([x_t, *steps], dim=1)
    for x in steps:
        x_t = x
    return x_t
