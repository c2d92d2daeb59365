"""A grid of samples during training, and one of training images beside it."""

import logging

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion_core.data.dataset import ImageDataset
from diffusion_core.errors import is_out_of_memory
from diffusion_core.generation import generate
from diffusion_core.lineage.saved_model import TrainedModel
from diffusion_core.pictures import grid
from diffusion_core.registry.tracking import Run
from diffusion_core.samplers.ddim import DDIM
from diffusion_core.stages.paths import DATA_PAGE
from diffusion_core.training.trainer import Trainer

logger = logging.getLogger(__name__)

IMAGES, COLUMNS = 20, 10
# In MLflow: a section of their own, above the charts. At step 0, samples may be those of the model in `train.from`.
SAMPLES_KEY, DATA_KEY = "samples/training", "samples/data"
STEPS = 25


def log_data(dataset: ImageDataset, model: TrainedModel, tracked: Run) -> None:
    """Log the page of the images, and training images beside the samples; the store keeps each once."""
    if DATA_PAGE.exists():
        tracked.text(DATA_PAGE.read_text(encoding="utf-8"), DATA_PAGE.name)
    tracked.image(training_images(dataset, model.labels(IMAGES)), key=DATA_KEY, step=0)


def training_images(dataset: ImageDataset, labels: list[int] | None) -> NDArray[np.uint8]:
    """Return a grid like that of `preview`, of training images of the same labels, to compare the samples with.

    Args:
        dataset: the training images.
        labels: of the samples; None without classes.
    """
    chosen = np.arange(IMAGES)
    if labels is not None and dataset.labels is not None:
        earlier = [labels[:index].count(label) for index, label in enumerate(labels)]
        having = {label: np.flatnonzero(dataset.labels == label) for label in set(labels)}
        chosen = np.array([np.resize(having[label], n + 1)[n] for label, n in zip(labels, earlier, strict=True)])
    return np.asarray(grid(dataset.images(chosen % len(dataset)), columns=COLUMNS))


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
    return np.asarray(grid(images, columns=COLUMNS))
