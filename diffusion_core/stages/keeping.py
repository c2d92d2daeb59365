"""Where a training's checkpoints are kept: one training at a time, with room for them on disk."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from diffusion_core.config.environment import Environment
from diffusion_core.errors import Unavailable, UserError
from diffusion_core.files import sweep_discarded, write_whole
from diffusion_core.lineage.checkpoints import (
    LOCK,
    SECONDS_TO_RECORD,
    checkpoints,
    is_finished,
    mark_unfinished,
    newest_step,
    only_training,
    remove_finished,
    training_folders,
)
from diffusion_core.lineage.identity import FILE, Identity
from diffusion_core.lineage.outbox import LONGEST_CALL, OUTBOX, Outbox
from diffusion_core.locks import Locked, exclusive_lock
from diffusion_core.registry.tracking import end_killed
from diffusion_core.stages.backup import backup
from diffusion_core.stages.paths import MODELS, TRAINING_LOCK
from diffusion_core.stages.plan import Plan
from diffusion_core.training.checkpoint import Checkpoint
from diffusion_core.training.trainer import Trainer

logger = logging.getLogger(__name__)

# The file of the budget, in images, with which a training began last.
BUDGET = "budget"
# The folder of a checkout whose environment names no other.
OWN_CHECKPOINTS = Environment.model_fields["checkpoints"].default
# Model, EMA, the best EMA and the optimizer's two averages.
COPIES_OF_WEIGHTS = 5


@contextmanager
def keeping(plan: Plan, trainer: Trainer, environment: Environment) -> Iterator[None]:
    """Keep this training's checkpoints during the block, and remove those of finished trainings first.

    Raises:
        UserError: another process trains in this checkout, which has one models/, or uses these checkpoints; the disk
            has no room for them; or the bucket for copies cannot be used.
        Unavailable: the bucket for copies does not answer.
    """
    try:
        with exclusive_lock(TRAINING_LOCK), only_training(plan.folder):
            plan.identity.write(plan.folder / FILE)
            _remove_finished(plan.folder)
            _check_room(plan.folder, trainer, environment)
            with backup(environment, plan.folder):
                mark_unfinished(plan.folder)
                yield
    except Locked as locked:
        raise UserError(
            f"another training writes {MODELS} in {Path.cwd()}{locked.holder}: wait until it ends, stop it, or use"
            " another checkout"
        ) from None


@contextmanager
def fitting(checkpoint: Checkpoint, folder: Path) -> Iterator[None]:
    """Say in one sentence what of a checkpoint does not fit in the block."""
    try:
        yield
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"the checkpoint of step {checkpoint.step} below {folder} does not fit this network"
            f" ({' '.join(str(error).split())}): remove {folder} to train again"
        ) from None


def set_aside_other_run(plan: Plan, budget: str) -> None:
    """Let this training begin another run in MLflow if its budget was another one before. Only within `keeping`.

    The queue of the run before is set aside in the same folder until it is sent.

    Args:
        plan: the plan.
        budget: its budget, in words.

    Raises:
        Unavailable: another process is sending that queue, and would take the new one for it.
    """
    queue, known = plan.folder / OUTBOX, plan.folder / BUDGET
    if queue.exists() and known.exists() and known.read_text(encoding="utf-8") != budget:
        end_killed(Outbox(queue))
        free = (queue.with_name(f"{OUTBOX}-{number}") for number in count(1))
        try:
            with Outbox(queue).sending(LONGEST_CALL):
                queue.rename(next(each for each in free if not each.exists()))
        except Locked as locked:
            raise Unavailable(
                f"another process{locked.holder} sends what waits in {queue}: wait until it has ended"
            ) from None
    write_whole(known, budget)


def report_unused(plan: Plan) -> None:
    """Say why no checkpoint is used: those here are of more images, or the newest is of another unfinished training."""
    if (step := newest_step(plan.folder)) is not None:
        print(f"train: begins at 0. The checkpoint of step {step} in {plan.folder} is of more images than train.images")
        return
    stored = {
        folder: other
        for folder in training_folders(plan.folder.parent)
        if folder != plan.folder and not is_finished(folder) and newest_step(folder) is not None
        if (other := Identity.stored(folder))
    }
    if stored:
        newest = max(stored, key=lambda folder: folder.stat().st_mtime)
        differences = "; ".join(plan.identity.differences(stored[newest]))
        step = newest_step(newest)
        print(f"train: begins at 0. The checkpoint of step {step} in {newest} is of another training: {differences}")


def _remove_finished(own: Path) -> None:
    """Remove what finished trainings have left beside the folder `own`, except milestones."""
    sweep_discarded(own.parent)
    # A checkout has one models/: to train here again gives up the model before. In another checkout, whose folder of
    # checkpoints DIFFUSION_CHECKPOINTS names too, it does not.
    is_shared = own.parent.resolve() != OWN_CHECKPOINTS.resolve()
    seconds = SECONDS_TO_RECORD if is_shared else 0.0
    for folder in training_folders(own.parent):
        try:
            if folder != own and is_finished(folder, seconds):
                with suppress(Locked), exclusive_lock(folder / LOCK):
                    # It may have begun again before the lock. What the tracking store has not taken is sent first.
                    if is_finished(folder, seconds) and all(outbox.is_empty() for outbox in Outbox.of(folder)):
                        remove_finished(folder)
        except OSError as error:
            logger.warning("%s stays, although its training has ended: %s", folder, error)


def _check_room(folder: Path, trainer: Trainer, environment: Environment) -> None:
    """Check that the checkpoints to be kept, the one being written and the model fit on the disk.

    Raises:
        UserError: they do not.
    """
    weights = sum(each.nbytes for each in trainer.diffusion.model.state_dict().values())
    milestones = 0
    if environment.keep_every_images is not None:
        milestones = trainer.total_steps * trainer.batch_size // environment.keep_every_images
    # The second one more is being sent to the bucket, and keeps its room when it is removed.
    more = 1 if environment.checkpoint_copies is None else 2
    missing = environment.keep_checkpoints + more + milestones - len(checkpoints(folder))
    needed = weights * (COPIES_OF_WEIGHTS * max(missing, 1) + 1)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder} has {free / 1e6:,.0f} MB free; checkpoints and model of this training need"
            f" {needed / 1e6:,.0f} MB: make room, or name another folder in DIFFUSION_CHECKPOINTS."
            " `diffusion clean` shows what may go, and with `--days 0` what is recent too"
        )
