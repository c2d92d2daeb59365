"""Train the model: data/prepared to models/, and plots/loss.csv."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import TrainSettings
from diffusion_core.data.dataset import ImageDataset
from diffusion_core.errors import UserError
from diffusion_core.files import Locked, exclusive_lock, replaced_files
from diffusion_core.lineage.identity import FILE as IDENTITY
from diffusion_core.lineage.identity import Identity
from diffusion_core.lineage.outbox import OUTBOX, Outbox
from diffusion_core.lineage.provenance import dataset_version, dvc_tags, git_state, known_tags, provenance_tags
from diffusion_core.lineage.record import RunInfo
from diffusion_core.lineage.saved_model import TrainedModel, build_model, save_model
from diffusion_core.randomness import derive_seed
from diffusion_core.registry.tracking import Run, training_run
from diffusion_core.runtime.allocator import keep_freed_memory
from diffusion_core.runtime.compile_cache import use_compile_cache
from diffusion_core.runtime.device import choose_compiled, choose_device, choose_dtype, choose_threads
from diffusion_core.runtime.distributed import Ranks, assert_same_on_all_ranks
from diffusion_core.stages.paths import LOSS, MODELS, PREPARED, RUN_INFO, TRAINING_LOCK
from diffusion_core.stages.plan import Plan, ShardData, make_plan
from diffusion_core.stages.preview import preview
from diffusion_core.training.checkpoint import (
    Checkpoint,
    finished_folders,
    load_newest,
    mark_finished,
    newest_step,
    only_training,
    remove_finished,
    save_checkpoint,
    shared_checkpoint,
)
from diffusion_core.training.report import History, Progress, Row
from diffusion_core.training.stopping import asked_to_stop, run_worker, stop_on_signal, translate_errors
from diffusion_core.training.trainer import Trainer

logger = logging.getLogger(__name__)

# Images of a skipped step that a warning names.
SHOWN = 5


def run(
    train: TrainSettings,
    environment: Environment,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
) -> None:
    """Train, or resume from a checkpoint of the same data, parameters, code and PyTorch.

    With several processes, only the main rank writes checkpoints and the model, and uses MLflow.

    Raises:
        UserError: data/prepared is missing, a checkpoint does not fit, the batch cannot be divided, the tracking store
            refuses this user, or another process trains here or with these checkpoints.
        SystemExit: after TERM or INT, with a checkpoint and the exit code 128 + signal.
    """
    plan = make_plan(train, environment)
    trainer = _trainer(plan, train, environment, ranks)
    assert_same_on_all_ranks(f"{plan.dataset.info.digest} {plan.params_digest} {trainer.precision.dtype}", ranks)
    with _alone(plan) if ranks.is_main else nullcontext():
        _train(trainer, plan, train, environment, ranks)


@contextmanager
def _alone(plan: Plan) -> Iterator[None]:
    """Let no other process train in this checkout, which has one models/, or use these checkpoints.

    Raises:
        UserError: another process does.
    """
    try:
        with exclusive_lock(TRAINING_LOCK), only_training(plan.folder):
            plan.identity.write(plan.folder / IDENTITY)
            finished = finished_folders(plan.folder.parent)
            for folder in finished - {plan.folder}:
                # What the tracking store has not taken is sent first.
                if Outbox(folder / OUTBOX).is_empty():
                    remove_finished(folder)
            yield
    except Locked:
        raise UserError(
            f"another training writes {MODELS} in {Path.cwd()}: wait until it ends, stop it, or use another checkout"
        ) from None


def _train(trainer: Trainer, plan: Plan, train: TrainSettings, environment: Environment, ranks: Ranks) -> None:
    checkpoint = shared_checkpoint(load_newest(plan.folder) if ranks.is_main else None, ranks)
    history = History(train.report_every_images)
    if checkpoint is not None:
        history = _restore(trainer, checkpoint, train, plan.folder)
        if ranks.is_main:
            print(f"train: resumes after {trainer.images:,} images", flush=True)
    elif ranks.is_main:
        _report_unused(plan)
    if not ranks.is_main:
        run_worker(trainer, ranks)
        return
    state: dict[str, Any] = {} if checkpoint is None else checkpoint.state

    version = dataset_version(PREPARED, plan.dataset.info.digest)
    commit = git_state()
    tags = known_tags({"dataset_md5": version.md5, "dataset_digest": version.digest})
    tags |= provenance_tags() | dvc_tags(within="data/")
    with training_run(
        environment,
        plan.folder / OUTBOX,
        params={"train": train.model_dump(mode="json")},
        dataset=version,
        tags=tags,
    ) as tracked:
        for row in history.rows:
            # The process that saved the checkpoint may have died before it logged the last row. The others are known.
            _log_row(row, tracked)
        model = TrainedModel(trainer.ema.module, plan.dataset.class_counts)
        _steps(trainer, model, train, environment, tracked, history, plan, state.get("preview_due", False))
        info = RunInfo(
            run_key=tracked.key,
            dataset_md5=version.md5,
            dataset_digest=version.digest,
            params_digest=plan.params_digest,
            git_commit=commit.commit,
            git_dirty=commit.dirty,
        )
        with replaced_files([MODELS / "model.safetensors", MODELS / "model.json", RUN_INFO, LOSS]) as temporary:
            description = plan.dataset.info.model_dump(mode="json") | {"class_counts": plan.dataset.class_counts}
            save_model(temporary, trainer.ema.module, plan.network, plan.process, description)
            info.write(temporary / RUN_INFO.name)
            history.write(temporary / LOSS.name)
    mark_finished(plan.folder)


def _trainer(plan: Plan, train: TrainSettings, environment: Environment, ranks: Ranks) -> Trainer:
    device = choose_device(environment.device)
    choose_dtype(environment.precision, device)  # its error names the variable
    compiled = choose_compiled(environment.compile, device)
    if compiled:
        use_compile_cache(environment.compile_cache, device)
    keep_freed_memory()
    torch.manual_seed(derive_seed(train.seed, "weights"))
    try:
        trainer = Trainer(
            build_model(plan.network, plan.process).to(device),
            ShardData(plan.dataset),
            precision=environment.precision,
            compiled=compiled,
            threads=choose_threads(environment.threads, device, ranks),
            ranks=ranks,
            **train.model_dump(exclude={"network", "process", "report_every_images", "preview_every_images"}),
        )
    except ValueError as error:
        raise UserError(f"the training cannot start: {error}") from None
    if ranks.is_main:
        print(f"train: on {_described(device, ranks)}, in {trainer.precision}", flush=True)
    return trainer


def _described(device: torch.device, ranks: Ranks) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return name if ranks.count == 1 else f"{ranks.count} processes with a share of {name} each"


def _report_unused(plan: Plan) -> None:
    """Say why the newest checkpoint of another unfinished training is not used."""
    stored = {
        folder: other
        for folder in plan.folder.parent.iterdir()
        if folder != plan.folder and newest_step(folder) is not None and (other := Identity.stored(folder))
    }
    if stored:
        newest = max(stored, key=lambda folder: folder.stat().st_mtime)
        differences = "; ".join(plan.identity.differences(stored[newest]))
        step = newest_step(newest)
        print(f"train: begins at 0. The checkpoint of step {step} in {newest} is of another training: {differences}")


def _restore(trainer: Trainer, checkpoint: Checkpoint, train: TrainSettings, folder: Path) -> History:
    try:
        trainer.restore(checkpoint.step, checkpoint.tensors)
        if trainer.threads is not None and "threads" in checkpoint.state:
            trainer.threads.restore(checkpoint.state["threads"])
        return History(train.report_every_images, checkpoint.state.get("history"))
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"the checkpoint of step {checkpoint.step} below {folder} does not fit this network"
            f" ({' '.join(str(error).split())}): remove {folder} to train again"
        ) from None


def _steps(
    trainer: Trainer,
    model: TrainedModel,
    train: TrainSettings,
    environment: Environment,
    tracked: Run,
    history: History,
    plan: Plan,
    preview_due: bool,
) -> None:
    """Run the remaining steps, with reports, previews of `model` and checkpoints.

    A checkpoint is saved before its preview; if `preview_due`, the process that saved it may have died in between.
    """
    progress = Progress(trainer.total_steps * trainer.batch_size, trainer.images)

    def save(preview_due: bool) -> None:
        state: dict[str, Any] = {"history": history.state(), "preview_due": preview_due}
        if trainer.threads is not None:
            state["threads"] = trainer.threads.state()
        save_checkpoint(plan.folder, Checkpoint(trainer.step, trainer.tensors(), state))

    def show_preview() -> None:
        picture = preview(model, train.seed, environment.sample_batch_size, trainer)
        if picture is not None:
            tracked.image(picture, key="samples", step=trainer.images)

    saved, reported = time.monotonic(), None
    with stop_on_signal() as request, translate_errors():
        try:
            if preview_due:
                show_preview()
            for report in trainer.steps():
                # Read once: a later signal waits for the next step and its checkpoint. Read before any synchronisation
                # with the device, which could wait forever if another process has ended.
                stop = asked_to_stop(request, trainer.ranks)
                last = report.step == trainer.total_steps
                progress.step(trainer.batch_size)
                known = len(history.skipped)
                row = history.add(report, last)
                if trainer.verdicts is not reported:
                    reported = trainer.verdicts
                    _report_self_check(trainer, tracked)
                wants_preview = last or report.reaches(train.preview_every_images)
                # The checkpoint is first: an error in what follows must not lose the training.
                overdue = time.monotonic() - saved > environment.checkpoint_seconds
                if wants_preview or overdue or stop:
                    save(wants_preview)
                    saved = time.monotonic()
                if row is not None:
                    _log_row(row, tracked)
                    progress.report(row)
                    _report_skipped(history.skipped[known:], plan.dataset, trainer, tracked)
                if stop:
                    print(f"train: stopped after {report.images:,} images; the same command resumes from there")
                    raise SystemExit(stop)
                if wants_preview:
                    show_preview()
        finally:
            progress.close()


def _log_row(row: Row, tracked: Run) -> None:
    """Log a row of the history; MLflow's step is the number of images."""
    values = {f"train/{name}": value for name, value in row.items() if name != "images" and value is not None}
    tracked.metrics(values, step=int(row["images"] or 0))


def _report_skipped(steps: list[int], dataset: ImageDataset, trainer: Trainer, tracked: Run) -> None:
    """Warn about skipped steps, with the images of each, and log them to the run."""
    for step in steps:
        images = dataset.sources(trainer.batch(step).numpy())
        shown = ", ".join(images[:SHOWN]) + (f" and {len(images) - SHOWN} more" if len(images) > SHOWN else "")
        logger.warning("step %d was skipped, because its loss or gradient is not finite; its images: %s", step, shown)
        tracked.text("\n".join(images) + "\n", f"skipped/step-{step:09d}.txt")


def _report_self_check(trainer: Trainer, tracked: Run) -> None:
    verdicts = "; ".join(map(str, trainer.verdicts)) or "float32, eager: nothing to compare"
    print(f"train: self-check: {verdicts}", flush=True)
    tracked.tag("self_check", verdicts)
