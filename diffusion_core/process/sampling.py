"""Whole images from a process: new ones, those between two, and those of which a part is known.

These functions are the methods of `GaussianDiffusion` with the same names, hence their first argument.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

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


@torch.inference_mode()
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
    """Return new images, (B, C, H, W), in [0, 1] where `auto_normalize`.

    Args:
        batch_size: B.
        return_all_timesteps: return (B, S + 1, C, H, W), the starting noise first and the image last.
        sampler: the process's own if not given.
        noise: the x_T to start from, (B, C, H, W); random if not given.
        randn: source of all noise; `samplers.noise.ImageNoise` gives each image a seed of its own.
        classes: labels, (B,), int64, for a class-conditional network.
        guidance: classifier-free guidance; none if not given.

    Raises:
        ValueError: the sampler does not fit the process, the noise has another shape, a label is out of range, or
            guidance lacks classes.
    """
    if isinstance(sampler, str | type):
        raise ValueError(f"sampler is {sampler!r}; it must be one that was made, DDIM(steps=50) say")
    denoiser = GuidedDenoiser(self.denoiser, self.schedule, guidance)
    classes = self.checked_classes(classes, batch_size)
    x_t = _starting_noise((batch_size, *self._image_shape), noise, randn, self.betas)
    steps = sample_loop(self.schedule, denoiser, sampler or self.sampler, x_t, classes=classes, randn=randn)
    return self.unnormalize(_finish(x_t, steps, return_all_timesteps))


@torch.inference_mode()
def inpaint(
    self: "GaussianDiffusion",
    images: Tensor,
    mask: Tensor,
    *,
    sampler: Sampler | None = None,
    jump_length: int = 10,
    resamplings: int = 10,
    return_all_timesteps: bool = False,
    noise: Tensor | None = None,
    randn: Randn = torch.randn_like,
    classes: Tensor | None = None,
    guidance: Guidance = Guidance(),  # noqa: B008 - frozen
) -> Tensor:
    """Return the images with their unknown pixels painted anew (RePaint, Lugmayr et al. 2022).

    Args:
        images: (B, C, H, W), in [0, 1] where `auto_normalize`.
        mask: 1 where a pixel is known and kept, 0 where it is to be painted; broadcasts against the images.
        sampler: ddpm, ddim or heun; the process's own if not given.
        jump_length: steps that a resampling goes back.
        resamplings: how often each stretch is sampled; 1 costs the least and fits the known pixels the worst.
        return_all_timesteps: as in `sample`, with the steps back among the others.
        noise, randn, classes, guidance: as in `sample`.

    Raises:
        ValueError: as in `sample`; or images or mask have another shape, or the sampler is a multistep one.
    """
    check_images(images, self._image_shape)
    known = checked_mask(mask, images, self.device)
    denoiser = GuidedDenoiser(self.denoiser, self.schedule, guidance)
    classes = self.checked_classes(classes, len(images))
    x_t = _starting_noise((len(images), *self._image_shape), noise, randn, self.betas)
    steps = inpaint_loop(
        self.schedule,
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


@torch.inference_mode()
def interpolate(
    self: "GaussianDiffusion",
    x1: Tensor,
    x2: Tensor,
    t: int | None = None,
    lam: float = 0.5,
    *,
    classes: Tensor | None = None,
) -> Tensor:
    """Return the images between two: noised to t, mixed by `lam`, and denoised (Ho et al. 2020, section 4.4).

    Denoising begins at t - 1, as in denoising-diffusion-pytorch.

    Args:
        x1: (B, C, H, W), worked on as they are, in [-1, 1], like the result.
        x2: likewise.
        t: how far they are noised, 0 .. T-1; T - 1 if not given.
        lam: 0 gives what comes of x1, 1 what comes of x2.
        classes: labels, (B,), for a class-conditional network.

    Raises:
        ValueError: the shapes differ, t is no timestep, or a label is out of range.
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
    """Return `sample` by DDPM; `shape` is (B, C, H, W)."""
    return self.sample(_batch_size(self, shape), return_all_timesteps, sampler=DDPM())


def ddim_sample(self: "GaussianDiffusion", shape: Sequence[int], return_all_timesteps: bool = False) -> Tensor:
    """Return `sample` by DDIM in `sampling_timesteps` steps; `shape` is (B, C, H, W)."""
    return self.sample(_batch_size(self, shape), return_all_timesteps, sampler=self._ddim())


def _batch_size(self: "GaussianDiffusion", shape: Sequence[int]) -> int:
    if tuple(shape[1:]) != self._image_shape:
        raise ValueError(f"shape is {tuple(shape)}; after the first number it must be {self._image_shape}")
    return shape[0]


def _starting_noise(shape: tuple[int, ...], noise: Tensor | None, randn: Randn, like: Tensor) -> Tensor:
    """Return x_T on the device and in the type of `like`: the noise that is given, or new noise.

    Raises:
        ValueError: there is no image, or the noise has another shape.
    """
    if shape[0] < 1:
        raise ValueError(f"batch_size is {shape[0]}; it must be at least 1")
    if noise is None:
        return randn(like.new_empty(shape))
    if noise.shape != shape:
        raise ValueError(f"noise is {tuple(noise.shape)}; it must be {shape}")
    return noise.to(like)


def _finish(x_t: Tensor, steps: Iterator[Tensor], return_all_timesteps: bool) -> Tensor:
    """Take all steps; return the last x, or all from `x_t` on, (B, S + 1, C, H, W)."""
    if return_all_timesteps:
        return torch.stack([x_t, *steps], dim=1)
    for x in steps:
        x_t = x
    return x_t
