"""Whole images from the process: new ones, those between two, and those of which a part is known."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from diffusion_core.process.reverse_process import ReverseProcess
from diffusion_core.process.schedules import BetaSchedule
from diffusion_core.process.transfer import moved
from diffusion_core.samplers import Draw, Sampler
from diffusion_core.samplers.ddim import DDIM
from diffusion_core.samplers.ddpm import DDPM
from diffusion_core.samplers.guidance import Guidance
from diffusion_core.samplers.loop import sample_loop
from diffusion_core.samplers.repaint import inpaint_loop


class GenerativeProcess(ReverseProcess):
    """A process that draws images, with a sampler of its own; arguments as in `GaussianDiffusion`."""

    def __init__(
        self,
        model: nn.Module,
        image_size: int | tuple[int, int],
        beta_schedule: BetaSchedule,
        timesteps: int,
        objective: str,
        auto_normalize: bool,
        zero_terminal_snr: bool,
        sampling_timesteps: int | None,
        ddim_sampling_eta: float,
    ) -> None:
        super().__init__(model, image_size, beta_schedule, timesteps, objective, auto_normalize, zero_terminal_snr)
        self.sampling_timesteps = timesteps if sampling_timesteps is None else sampling_timesteps
        if not 1 <= self.sampling_timesteps <= timesteps:
            raise ValueError(
                f"sampling_timesteps is {sampling_timesteps}; it must lie in 1 .. {timesteps}, as timesteps"
            )
        if not 0.0 <= ddim_sampling_eta <= 1.0:
            raise ValueError(f"ddim_sampling_eta is {ddim_sampling_eta}; it must lie in [0, 1]")
        self.ddim_sampling_eta = ddim_sampling_eta
        ddim = DDIM(steps=self.sampling_timesteps, eta=ddim_sampling_eta)
        self.sampler: Sampler = ddim if self.is_ddim_sampling else DDPM()

    @property
    def is_ddim_sampling(self) -> bool:
        """Whether `sample` takes DDIM where it is given no sampler."""
        return self.sampling_timesteps < self.num_timesteps

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
        guidance: Guidance = Guidance(),  # noqa: B008 - frozen
    ) -> Tensor:
        """Return new images, (B, C, H, W), in [0, 1] where `auto_normalize`.

        Args:
            batch_size: B.
            return_all_timesteps: return (B, S + 1, C, H, W), the starting noise first and the image last.
            sampler: the process's own if not given.
            noise: the x_T to start from, (B, C, H, W); drawn if not given.
            draw: source of all noise; `samplers.noise.ImageNoise` gives each image a seed of its own.
            classes: labels, (B,), int64, for a class-conditional network.
            guidance: classifier-free guidance; none if not given.

        Raises:
            ValueError: the sampler does not fit the process, the noise has another shape, a label is out of range, or
                guidance lacks classes.
        """
        if isinstance(sampler, str | type):
            raise ValueError(f"sampler is {sampler!r}; it must be one that was made, DDIM(steps=50) say")
        classes = self.checked_classes(classes, batch_size)
        x_t = self._start(batch_size, noise, draw)
        walk = sample_loop(self, sampler or self.sampler, x_t, draw=draw, classes=classes, guidance=guidance)
        return self._finish(x_t, walk, return_all_timesteps)

    @torch.inference_mode()
    def inpaint(
        self,
        images: Tensor,
        mask: Tensor,
        *,
        sampler: Sampler | None = None,
        jump_length: int = 10,
        resamplings: int = 10,
        return_all_timesteps: bool = False,
        noise: Tensor | None = None,
        draw: Draw = torch.randn_like,
        classes: Tensor | None = None,
        guidance: Guidance = Guidance(),  # noqa: B008 - frozen
    ) -> Tensor:
        """Return the images with their unknown pixels painted anew (RePaint, Lugmayr et al. 2022).

        Args:
            images: (B, C, H, W), in [0, 1] where `auto_normalize`.
            mask: 1 where a pixel is known and kept, 0 where it is to be painted; broadcasts against the images.
            sampler: ddpm, ddim or heun; the process's own if not given.
            jump_length: steps that the walk goes back for a resampling.
            resamplings: how often each stretch is walked; 1 costs the least and fits the known pixels the worst.
            return_all_timesteps: as in `sample`, with the steps back among the others.
            noise: the x_T to start from; drawn if not given.
            draw: source of all noise.
            classes: labels, (B,), for a class-conditional network.
            guidance: classifier-free guidance.

        Raises:
            ValueError: as in `sample`; or images or mask have another shape, or the sampler's steps need one another.
        """
        self._check_images(images)
        if not isinstance(mask, Tensor):
            raise ValueError(f"mask is a {type(mask).__name__}; it must be a tensor of 0 and 1")
        known = mask.to(self.device) == 1
        try:
            torch.broadcast_to(known, images.shape)
        except RuntimeError:
            raise ValueError(f"mask is {tuple(mask.shape)}; it must broadcast to {tuple(images.shape)}") from None
        if not bool((known | (mask.to(self.device) == 0)).all()):
            raise ValueError(
                f"mask has values between {float(mask.min())} and {float(mask.max())}; each must be 0 or 1"
            )
        classes = self.checked_classes(classes, len(images))
        x_t = self._start(len(images), noise, draw)
        walk = inpaint_loop(
            self,
            sampler or self.sampler,
            x_t,
            self.normalize(images.to(x_t)),
            known,
            jump_length=jump_length,
            resamplings=resamplings,
            draw=draw,
            classes=classes,
            guidance=guidance,
        )
        return self._finish(x_t, walk, return_all_timesteps)

    @torch.inference_mode()
    def interpolate(
        self, x1: Tensor, x2: Tensor, t: int | None = None, lam: float = 0.5, *, classes: Tensor | None = None
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
        self._check_images(x1)
        if not 0 <= t < self.num_timesteps:
            raise ValueError(f"t is {t}; it must lie in 0 .. {self.num_timesteps - 1}")
        classes = self.checked_classes(classes, len(x1))
        times = torch.full((len(x1),), t, device=x1.device, dtype=torch.long)
        x_t = (1.0 - lam) * self.q_sample(x1, times) + lam * self.q_sample(x2, times)
        x0: Tensor | None = None
        for step in reversed(range(t)):
            x_t, x0 = self.p_sample(x_t, step, x0 if self.self_condition else None, classes=classes)
        return x_t

    def p_sample_loop(self, shape: Sequence[int], return_all_timesteps: bool = False) -> Tensor:
        """Return `sample` by DDPM; `shape` is (B, C, H, W)."""
        return self._sample_shape(shape, return_all_timesteps, DDPM())

    def ddim_sample(self, shape: Sequence[int], return_all_timesteps: bool = False) -> Tensor:
        """Return `sample` by DDIM in `sampling_timesteps` steps; `shape` is (B, C, H, W)."""
        sampler = DDIM(steps=self.sampling_timesteps, eta=self.ddim_sampling_eta)
        return self._sample_shape(shape, return_all_timesteps, sampler)

    def _sample_shape(self, shape: Sequence[int], return_all_timesteps: bool, sampler: Sampler) -> Tensor:
        if tuple(shape[1:]) != self._image_shape:
            raise ValueError(f"shape is {tuple(shape)}; after the first number it must be {self._image_shape}")
        return self.sample(shape[0], return_all_timesteps, sampler=sampler)

    @property
    def _image_shape(self) -> tuple[int, ...]:
        return (self.channels, *self.image_size)

    def _start(self, batch_size: int, noise: Tensor | None, draw: Draw) -> Tensor:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        shape = (batch_size, *self._image_shape)
        if noise is None:
            return draw(self.betas.new_empty(shape))
        if noise.shape != shape:
            raise ValueError(f"noise is {tuple(noise.shape)}; it must be {shape}")
        return noise.to(self.betas)

    def _finish(self, x_t: Tensor, walk: Iterator[Tensor], return_all_timesteps: bool) -> Tensor:
        steps = [x_t] if return_all_timesteps else []
        for x_t in walk:
            if return_all_timesteps:
                steps.append(x_t)
        return self.unnormalize(torch.stack(steps, dim=1) if return_all_timesteps else x_t)

    def _check_images(self, images: Tensor) -> None:
        if tuple(images.shape[1:]) != self._image_shape:
            raise ValueError(f"the images are {tuple(images.shape[1:])}; this process is for {self._image_shape}")
        if not images.is_floating_point():
            raise ValueError(f"the images are {images.dtype}; they must be floating point, in [0, 1]")

    def checked_classes(self, classes: Tensor | None, batch_size: int) -> Tensor | None:
        """Return labels, int64 (B,), on the process's device.

        Raises:
            ValueError: the network takes none, they are no such tensor, or one that lies on the host is out of range.
        """
        if classes is None:
            return None
        if self.num_classes is None:
            raise ValueError("classes are given, but the network has no num_classes: leave them out")
        if not isinstance(classes, Tensor):
            raise ValueError(f"classes is a {type(classes).__name__}; it must be a tensor, int64 of {(batch_size,)}")
        if classes.shape != (batch_size,) or classes.dtype != torch.long:
            raise ValueError(
                f"classes is {classes.dtype} of shape {tuple(classes.shape)}; it must be int64 of {(batch_size,)}"
            )
        # On another device, looking would make the host wait; the embedding there stops at a wrong label itself.
        if classes.device.type == "cpu":
            for label in classes[(classes < 0) | (classes >= self.num_classes)].tolist():
                raise ValueError(f"classes has the label {label}; labels must lie in 0 .. {self.num_classes - 1}")
        return moved(classes, self.device)
