"""Draw images from the trained model: models/ to samples/."""

import numpy as np
import torch
from torch import Tensor

from diffusion_core.device import choose_device
from diffusion_core.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.generation import generate, to_uint8
from diffusion_core.pictures import grid, save
from diffusion_core.process.gaussian_diffusion import GaussianDiffusion
from diffusion_core.samplers.noise import ImageNoise
from diffusion_core.saved_model import DESCRIPTION, WEIGHTS, load_model
from diffusion_core.settings import SampleSettings
from diffusion_core.stages.output import replaced
from diffusion_core.stages.paths import MODELS, SAMPLES, needs

GRID_IMAGES = 100
DENOISING_ROWS = 8
DENOISING_COLUMNS = 11


def run(sample: SampleSettings, environment: Environment) -> None:
    """Write samples.npy, labels.npy for a class-conditional model, grid.png and denoising.png.

    Raises:
        UserError: the model is missing, or guidance is asked of a model without classes.
    """
    for file in (DESCRIPTION, WEIGHTS):
        needs(MODELS / file, "train")
    diffusion, _ = load_model(MODELS, choose_device(environment))
    if sample.guidance_scale != 1.0 and diffusion.num_classes is None:
        raise UserError(
            f"sample.guidance_scale is {sample.guidance_scale}; the model has no classes, so it must be 1.0"
        )
    images, labels = generate(
        diffusion,
        sample.count,
        seed=sample.seed,
        sampler=sample.sampler,
        guidance_scale=sample.guidance_scale,
        batch_size=environment.sample_batch_size,
        progress=True,
    )
    with replaced(SAMPLES) as folder:
        np.save(folder / "samples.npy", images)
        if labels is not None:
            np.save(folder / "labels.npy", labels)
        save(grid(images[:GRID_IMAGES], columns=10), folder / "grid.png")
        walks = _walks(diffusion, sample, min(DENOISING_ROWS, sample.count))
        save(grid(walks.reshape(-1, *walks.shape[2:]), columns=walks.shape[1]), folder / "denoising.png")


def _walks(diffusion: GaussianDiffusion, sample: SampleSettings, rows: int) -> np.ndarray:
    """Return the way of the first images from noise to image: uint8 (rows, columns, H, W, C)."""
    classes: Tensor | None = None
    if diffusion.num_classes is not None:
        classes = torch.arange(rows) % diffusion.num_classes
    walk = diffusion.sample(
        rows,
        return_all_timesteps=True,
        sampler=sample.sampler,
        draw=ImageNoise(sample.seed, range(rows)),
        classes=classes,
        guidance_scale=sample.guidance_scale,
    )
    shown = torch.linspace(0, walk.shape[1] - 1, min(DENOISING_COLUMNS, walk.shape[1])).round().long()
    return to_uint8(walk[:, shown])
