"""What a training says of itself, in its output and in MLflow."""

import logging

from diffusion_core.config.settings import TrainSettings
from diffusion_core.data.dataset import ImageDataset
from diffusion_core.registry.tracking import Run
from diffusion_core.training.report import Row
from diffusion_core.training.trainer import Trainer

logger = logging.getLogger(__name__)

# Images of a skipped step that a warning names.
SHOWN = 5


def log_row(row: Row, tracked: Run) -> None:
    """Log a row of the history; MLflow's step is the number of images."""
    values = {f"train/{name}": value for name, value in row.items() if name != "images" and value is not None}
    tracked.metrics(values, step=int(row["images"] or 0))


def report_skipped(steps: list[int], dataset: ImageDataset, trainer: Trainer, tracked: Run) -> None:
    """Warn about skipped steps, with the images of each, and log them to the run."""
    for step in steps:
        images = dataset.sources(trainer.batch(step).numpy())
        shown = ", ".join(images[:SHOWN]) + (f" and {len(images) - SHOWN} more" if len(images) > SHOWN else "")
        logger.warning("step %d was skipped, because its loss or gradient is not finite; its images: %s", step, shown)
        tracked.text("\n".join(images) + "\n", f"skipped/step-{step:09d}.txt")


def report_self_check(trainer: Trainer, tracked: Run) -> None:
    """Say how the self-check went, and log it to the run."""
    verdicts = "; ".join(map(str, trainer.verdicts)) or "float32, eager: nothing to compare"
    print(f"train: self-check: {verdicts}", flush=True)
    tracked.tag("self_check", verdicts)


def report_end(trainer: Trainer, train: TrainSettings, tracked: Run) -> None:
    """Say where a training ended that `train.minutes` ended, because another machine would end elsewhere."""
    if trainer.images >= train.images:
        return
    tracked.tag("trained_images", str(trainer.images))
    print(
        f"train: ends after {trainer.images:,} of {train.images:,} images, because train.minutes is {train.minutes:g}",
        flush=True,
    )
