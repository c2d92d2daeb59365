"""Validation during a training: when memory is small, in MLflow, and the weights that become the model."""

from collections.abc import Mapping
from pathlib import Path

from diffusion_core.config.settings import TrainSettings
from diffusion_core.data.dataset import ImageDataset
from diffusion_core.errors import is_out_of_memory
from diffusion_core.registry.tracking import Run
from diffusion_core.stages.keeping import fitting
from diffusion_core.stages.paths import PREPARED
from diffusion_core.stages.plan import ShardData
from diffusion_core.training.checkpoint import Checkpoint
from diffusion_core.training.trainer import Trainer
from diffusion_core.training.validation import Validation


def open_validation(trainer: Trainer, checkpoint: Checkpoint | None, train: TrainSettings, folder: Path) -> Validation:
    """Return the validation of a training, with what its checkpoint has of it.

    Raises:
        UserError: the checkpoint does not fit.
    """
    images = ShardData(ImageDataset.open(PREPARED, "validation"))
    validation = Validation(images, train.validate_every_images, train.validation_share, train.seed)
    if checkpoint is not None:
        with fitting(checkpoint, folder):
            best, weights = checkpoint.tensors.get("best", {}), trainer.ema.module.model.state_dict()
            validation.restore(checkpoint.state["validation"], best, weights)
    return validation


def validate(validation: Validation, trainer: Trainer, tracked: Run) -> None:
    """Measure the averaged weights; once more without the recorded step, which reserves memory, where that is small."""
    size = max(trainer.batch_size // trainer.gradient.accumulate // trainer.ranks.count, 1)
    arguments = (trainer.ema.module, trainer.images, size, trainer.precision.dtype)
    row = None
    for is_last in (False, True):
        try:
            row = validation.measure(*arguments)
            break
        except (MemoryError, RuntimeError) as error:
            if is_last or not is_out_of_memory(error):
                raise
        # Outside the handler, because the error's traceback keeps tensors alive.
        trainer.forget_recording()
    if row is not None:
        log_validation(row, tracked)


def log_validation(row: Mapping[str, float], tracked: Run) -> None:
    """Log a row of the validation; MLflow's step is the number of images."""
    values = {f"validation/{name}": value for name, value in row.items() if name != "images"}
    tracked.metrics(values, step=int(row["images"]))


def take_best(trainer: Trainer, validation: Validation, tracked: Run) -> None:
    """Give the averaged weights back as they were where the validation loss was lowest."""
    best = validation.best_row
    if best is not None:
        trainer.ema.module.model.load_state_dict(validation.best)
        tracked.tag("best_images", f"{best['images']:.0f}")
        print(
            f"train: the model has the weights after {best['images']:,.0f} images, where validation was best: loss"
            f" {best['loss']:.4g}",
            flush=True,
        )
