"""Validation during a training: when memory is small, in MLflow, and the weights that become the model."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from diffusion_core.config.settings import TrainSettings
from diffusion_core.data.dataset import ImageDataset
from diffusion_core.errors import is_out_of_memory
from diffusion_core.registry.tracking import Run
from diffusion_core.stages.keeping import fitting
from diffusion_core.stages.paths import PREPARED
from diffusion_core.stages.plan import ShardData
from diffusion_core.training.checkpoint import Checkpoint
from diffusion_core.training.trainer import Trainer
from diffusion_core.training.validation import Row, Validation

logger = logging.getLogger(__name__)


def open_validation(trainer: Trainer, checkpoint: Checkpoint | None, train: TrainSettings, folder: Path) -> Validation:
    """Return the validation of a training, with what its checkpoint has of it.

    Raises:
        UserError: the checkpoint does not fit.
    """
    data = ShardData(ImageDataset.open(PREPARED, "validation"))
    validation = Validation(data, train.images, train.validate_every_images, train.validation_share, train.seed)
    if checkpoint is not None and checkpoint.step:
        with fitting(checkpoint, folder):
            best, weights = checkpoint.tensors.get("best", {}), trainer.ema.module.model.state_dict()
            validation.restore(checkpoint.state["validation"], best, weights)
    return validation


def validate(validation: Validation, trainer: Trainer, check: Callable[..., None]) -> Row | None:
    """Measure the averaged weights; None after a warning if memory is too small.

    Args:
        validation: the validation.
        trainer: the trainer, which frees its recorded step if memory is too small.
        check: called before each evaluation of the network, and may raise. Not with several processes: the others wait
            for this one in the next step.
    """
    size = max(trainer.batch_size // trainer.gradient.accumulate // trainer.ranks.count, 1)
    problem = ""
    while size:
        before = torch.get_num_threads()
        if trainer.threads is not None:
            # Those of the next step, also where a resumed training has not done one yet: rounding depends on them.
            torch.set_num_threads(trainer.threads.threads)
        hook = trainer.ema.module.model.register_forward_pre_hook(check) if trainer.ranks.count == 1 else None
        try:
            return validation.measure(trainer.ema.module, trainer.images, size)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            problem = " ".join(str(error).split())
        finally:
            torch.set_num_threads(before)
            if hook is not None:
                hook.remove()
        # Outside the handler, because the error's traceback keeps tensors alive. A recorded step reserves memory.
        trainer.forget_recording()
        size //= 2
    logger.warning("the validation loss after %d images is not measured (%s)", trainer.images, problem)
    return None


def log_validation(row: Mapping[str, float], tracked: Run) -> None:
    """Log a row of the validation; MLflow's step is the number of images."""
    values = {f"validation/{name}": value for name, value in row.items() if name != "images"}
    tracked.metrics(values, step=int(row["images"]))


def take_best(trainer: Trainer, validation: Validation, tracked: Run) -> int:
    """Give the averaged weights back as they were where the validation loss was lowest, if the last are surely worse.

    Returns:
        After how many images they were so.
    """
    best = validation.best_row
    if best is None or not validation.is_last_worse:
        return trainer.images
    trainer.ema.module.model.load_state_dict(validation.best)
    images, last = int(best["images"]), validation.rows[-1]
    tracked.tag("model_images", str(images))
    print(
        f"train: the model has the weights after {images:,} images, because validation became worse: the loss was"
        f" {best['loss']:.4g} there and is {last['loss']:.4g} at the end",
        flush=True,
    )
    return images
