"""When a training has diverged: too many steps were skipped, or its weights are not finite."""

from collections.abc import Iterable

import torch
from torch import Tensor

from diffusion_core.training.optimizer import Update

# Training has diverged after this many consecutive skipped steps.
MAX_BAD_STEPS = 10
# The share of skipped steps is one of at least this many, or of all steps of a shorter training.
LEAST_STEPS = 1000

_REMEDY = "lower train.learning_rate, or set DIFFUSION_PRECISION=float32"


class TrainingDiverged(RuntimeError):
    """Too many steps were skipped, because their loss or gradient is not finite, or the weights are not finite."""


def check_steps(update: Update, step: int, total_steps: int, max_skipped_share: float) -> None:
    """Check the counts of skipped steps after `step` of `total_steps` steps; waits for the device.

    Raises:
        TrainingDiverged: `MAX_BAD_STEPS` in a row were skipped, or more than the share.
    """
    if int(update.most_bad_steps) >= MAX_BAD_STEPS:
        raise TrainingDiverged(
            f"the gradient was not finite for {MAX_BAD_STEPS} steps in a row, until step {step}: {_REMEDY}"
        )
    skipped = int(update.skipped_steps)
    if skipped > max_skipped_share * max(step, min(LEAST_STEPS, total_steps)):
        raise TrainingDiverged(
            f"the loss or gradient of {skipped} of {step} steps was not finite, and train.max_skipped_share is"
            f" {max_skipped_share}: {_REMEDY}"
        )


def check_finite(tensors: Iterable[Tensor], step: int) -> None:
    """Check the tensors of a checkpoint after `step` steps.

    Raises:
        TrainingDiverged: a value is not finite, from which no training could resume.
    """
    # The extremes are not finite if any value is not, and are found many times as fast as each is asked.
    extremes = (torch.stack(torch.aminmax(each)) for each in tensors if each.numel())
    if not all(bool(each.isfinite().all()) for each in extremes):
        raise TrainingDiverged(f"the weights after step {step} are not finite: {_REMEDY}")
