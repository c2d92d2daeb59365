"""A grid of samples during training."""

import logging

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion_core.errors import is_out_of_memory
from diffusion_core.generation import generate
from diffusion_core.lineage.saved_model import TrainedModel
from diffusion_core.pictures import grid
from diffusion_core.samplers.ddim import DDIM
from diffusion_core.training.trainer import Trainer

logger = logging.getLogger(__name__)

IMAGES = 20
STEPS = 25


def preview(model: TrainedModel, seed: int, batch_size: int, trainer: Trainer) -> NDArray[np.uint8] | None:
    """Return a grid of samples, or None after a warning if memory is too small.

    Args:
        model: the model to sample from.
        seed: seed of the samples.
        batch_size: maximum images per batch.
        trainer: the model's trainer, which frees its recorded step if memory is too small.
    """
    for is_last in (False, True):
        try:
            return _samples(model, seed, batch_size, trainer.precision.dtype)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            problem = " ".join(str(error).split())
        if not is_last:
            # A recorded step reserves memory.
            trainer.forget_recording()
    logger.warning("no preview is made (%s): set DIFFUSION_SAMPLE_BATCH_SIZE below %d, its images", problem, IMAGES)
    return None


def _samples(model: TrainedModel, seed: int, batch_size: int, dtype: torch.dtype) -> NDArray[np.uint8]:
    images, _ = generate(
        model.diffusion,
        IMAGES,
        labels=model.labels(IMAGES),
        seed=seed,
        sampler=DDIM(steps=min(STEPS, model.diffusion.num_timesteps)),
        batch_size=batch_size,
        dtype=dtype,
    )
    return np.asarray(grid(images, columns=10))
