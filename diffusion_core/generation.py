"""Drawing a set of images in which image i depends on (seed, i) alone."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_core.process.gaussian_diffusion import GaussianDiffusion
from diffusion_core.samplers import Sampler
from diffusion_core.samplers.noise import ImageNoise


def generate(
    diffusion: GaussianDiffusion,
    count: int,
    *,
    seed: int,
    sampler: Sampler,
    guidance_scale: float = 1.0,
    batch_size: int = 250,
    labels: Sequence[int] | None = None,
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return images, uint8 (count, H, W, C), and their labels, int64 (count,), or None without classes.

    Args:
        diffusion: the trained process, in eval mode.
        count: how many images.
        seed: of the set; another batch size or a longer set gives the same first images.
        sampler: the way from noise to image.
        guidance_scale: classifier-free guidance; 1 for none.
        batch_size: images at a time; only memory and speed depend on it.
        labels: one an image; for a class-conditional network image i gets i modulo the number of classes if not given.
        progress: show a bar on a terminal.

    Raises:
        ValueError: the labels do not fit the network or the count, or the sampler does not fit the process.
    """
    classes = _classes(diffusion, count, labels)
    batches = [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    images = []
    with tqdm(total=count, unit="image", desc="sample", disable=None if progress else True) as bar:
        for indices in batches:
            here = None if classes is None else classes[indices.start : indices.stop]
            drawn = diffusion.sample(
                len(indices),
                sampler=sampler,
                draw=ImageNoise(seed, indices),
                classes=here,
                guidance_scale=guidance_scale,
            )
            images.append(to_uint8(drawn))
            bar.update(len(indices))
    return np.concatenate(images), None if classes is None else classes.numpy()


def to_uint8(images: Tensor) -> np.ndarray:
    """Return images in [0, 1], (..., C, H, W), as uint8 (..., H, W, C)."""
    pixels: np.ndarray = (images.clamp(0, 1) * 255).round().byte().movedim(-3, -1).cpu().numpy()
    return pixels


def _classes(diffusion: GaussianDiffusion, count: int, labels: Sequence[int] | None) -> Tensor | None:
    if diffusion.num_classes is None:
        if labels is not None:
            raise ValueError("labels are given, but the model is not class-conditional")
        return None
    if labels is None:
        return torch.arange(count) % diffusion.num_classes
    if len(labels) != count:
        raise ValueError(f"{len(labels)} labels are given for {count} images; give one an image")
    return torch.as_tensor(labels, dtype=torch.long)
