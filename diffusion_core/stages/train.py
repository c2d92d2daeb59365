"""Train the model: data/prepared to models/, plots/loss.csv and plots/validation.csv."""

import logging
import time
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import torch

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import TrainSettings
from diffusion_core.errors import UserError
from diffusion_core.files import replaced_files
from diffusion_core.lineage.checkpoints import mark_finished
from diffusion_core.lineage.dataset_version import dataset_version
from diffusion_core.lineage.outbox import OUTBOX
from diffusion_core.lineage.provenance import dvc_tags, git_state, known_tags, provenance_tags
from diffusion_core.lineage.record import RunInfo
from diffusion_core.lineage.recorded import PARENT, PARENT_DIGEST
from diffusion_core.lineage.saved_model import TrainedModel, build_model, save_model
from diffusion_core.progress import Progress
from diffusion_core.randomness import derive_seed
from diffusion_core.registry.pages import run_tags
from diffusion_core.registry.tracking import Run, training_run
from diffusion_core.runtime.allocator import keep_freed_memory
from diffusion_core.runtime.compile_cache import use_compile_cache
from diffusion_core.runtime.device import choose_compiled, choose_device, choose_dtype, choose_threads
from diffusion_core.runtime.distributed import Ranks, assert_same_on_all_ranks
from diffusion_core.stages.cost import Cost, as_metrics
from diffusion_core.stages.keeping import fitting, keeping, report_unused, set_aside_other_run
from diffusion_core.stages.memory import free_memory
from diffusion_core.stages.origin import record_origin, record_threads
from diffusion_core.stages.parent import find_parent, first_checkpoint
from diffusion_core.stages.paths import LOSS, MODELS, PREPARED, RUN_INFO, VALIDATION
from diffusion_core.stages.plan import Plan, ShardData, make_plan
from diffusion_core.stages.preview import SAMPLES_KEY, log_data, preview
from diffusion_core.stages.reporting import log_row, report_end, report_self_check, report_skipped
from diffusion_core.stages.validating import log_validation, open_validation, take_best, validate
from diffusion_core.training.checkpoint import Checkpoint, load_newest, shared_checkpoint
from diffusion_core.training.report import COLUMNS, History, write_rows
from diffusion_core.training.saving import Saver
from diffusion_core.training.stopping import Stopped, asked_to_stop, run_worker, stop_on_signal, translate_errors
from diffusion_core.training.trainer import Trainer
from diffusion_core.training.validation import COLUMNS as validation_columns
from diffusion_core.training.validation import Validation

logger = logging.getLogger(__name__)


def run(
    train: TrainSettings,
    environment: Environment,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
) -> None:
    """Train, or resume from a checkpoint of the same data, parameters, code and PyTorch, also with a larger budget.

    With several processes, only the main rank writes checkpoints and the model, and uses MLflow.

    Raises:
        UserError: data/prepared is missing, a checkpoint or the model in `train.from` does not fit, or the batch cannot
            be divided. Or the tracking store refuses this user, or another process trains here.
        SystemExit: after TERM or INT, with a checkpoint and the exit code 128 + signal.
    """
    plan = make_plan(train, environment, find_parent(train, environment) if ranks.is_main else None)
    trainer = _trainer(plan, train, environment, ranks)
    assert_same_on_all_ranks(f"{plan.dataset.info.digest} {plan.params_digest} {trainer.precision.dtype}", ranks)
    with keeping(plan, trainer, environment) if ranks.is_main else nullcontext():
        _train(trainer, plan, train, environment, ranks)


def _train(trainer: Trainer, plan: Plan, train: TrainSettings, environment: Environment, ranks: Ranks) -> None:
    newest = load_newest(plan.folder, up_to=trainer.total_steps) if ranks.is_main else None
    if newest is None and ranks.is_main:
        report_unused(plan)
        newest = first_checkpoint(plan, trainer)
    checkpoint = shared_checkpoint(newest, ranks)
    history = History(train.report_every_images)
    if checkpoint is not None:
        history = _restore(trainer, checkpoint, train, plan.folder)
        if ranks.is_main and checkpoint.step:
            print(f"train: resumes after {trainer.images:,} images", flush=True)
    state: dict[str, Any] = {} if checkpoint is None else checkpoint.state
    cost = Cost(trainer.diffusion.device, ranks.count, state)
    if ranks.all_reduce_max(int(cost.left(train.minutes) == 0.0)):
        trainer.total_steps = trainer.step
    if not ranks.is_main:
        run_worker(trainer, ranks)
        return
    validation = open_validation(trainer, checkpoint, train, plan.folder)

    version = dataset_version(PREPARED, plan.dataset)
    commit = git_state()
    tags = known_tags({"dataset_md5": version.md5, "dataset_digest": version.digest})
    tags |= provenance_tags() | dvc_tags(within="data/") | run_tags(version, train)
    parent = None if plan.parent is None else plan.parent.named
    tags |= {} if parent is None else {PARENT: parent["name"], PARENT_DIGEST: parent["digest"]}
    set_aside_other_run(plan, f"{train.images} images, {train.minutes} minutes")
    with training_run(
        environment,
        plan.folder / OUTBOX,
        params={"train": train.model_dump(mode="json")},
        dataset=version,
        tags=tags,
    ) as tracked:
        model = TrainedModel(trainer.ema.module, plan.dataset.class_counts)
        log_data(plan.dataset, model, tracked)
        for row in history.rows:
            # The process that saved the checkpoint may have died before it logged the last row. The others are known.
            log_row(row, tracked)
        for measured in validation.rows:
            log_validation(measured, tracked)
        record_origin(tracked, trainer, commit.dirty)
        _steps(trainer, model, train, environment, tracked, history, validation, plan, state, cost)
        report_end(trainer, train, tracked)
        tracked.metrics(as_metrics("train", cost.spent), step=trainer.images)
        record_threads(tracked, trainer)
        model_images = take_best(trainer, validation, tracked)
        info = RunInfo(
            run_key=tracked.key,
            dataset_md5=version.md5,
            dataset_digest=version.digest,
            params_digest=plan.params_digest,
            git_commit=commit.commit,
            git_dirty=commit.dirty,
            model_images=model_images,
            trained_images=trainer.images,
        )
        outputs = [MODELS / "model.safetensors", MODELS / "model.json", RUN_INFO, LOSS, VALIDATION]
        with replaced_files(outputs) as temporary:
            description = plan.dataset.info.model_dump(mode="json") | {"class_counts": plan.dataset.class_counts}
            save_model(temporary, trainer.ema.module, plan.network, plan.process, description, parent)
            info.write(temporary / RUN_INFO.name)
            write_rows(temporary / LOSS.name, COLUMNS, history.rows)
            write_rows(temporary / VALIDATION.name, validation_columns, validation.rows)
    mark_finished(plan.folder)
    print(f"train: the model, with its weights after {model_images:,} images, is in {MODELS}", flush=True)


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
            **train.of_trainer(),
        )
    except ValueError as error:
        raise UserError(f"the training cannot start: {error}") from None
    if ranks.is_main:
        print(f"train: on {_described(device, ranks)}, in {trainer.precision}", flush=True)
        _report_memory(trainer, plan, train)
    return trainer


def _report_memory(trainer: Trainer, plan: Plan, train: TrainSettings) -> None:
    """Say where images are larger than memory, and are read one by one."""
    size, free = plan.dataset.nbytes, free_memory()
    # Those that the device has in its own memory are read once.
    if isinstance(trainer.data, ShardData) and train.shuffle_window is None and size > free:
        print(
            f"train: the images have {size / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB of memory are free: with"
            " train.shuffle_window they are read in long pieces",
            flush=True,
        )


def _described(device: torch.device, ranks: Ranks) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return name if ranks.count == 1 else f"{ranks.count} processes with a share of {name} each"


def _restore(trainer: Trainer, checkpoint: Checkpoint, train: TrainSettings, folder: Path) -> History:
    with fitting(checkpoint, folder):
        trainer.restore(checkpoint.step, checkpoint.tensors)
        if trainer.threads is not None and "threads" in checkpoint.state:
            trainer.threads.restore(checkpoint.state["threads"])
        return History(train.report_every_images, checkpoint.state.get("history"))


def _steps(
    trainer: Trainer,
    model: TrainedModel,
    train: TrainSettings,
    environment: Environment,
    tracked: Run,
    history: History,
    validation: Validation,
    plan: Plan,
    state: Mapping[str, Any],
    cost: Cost,
) -> None:
    """Run the remaining steps, with reports, validation, previews of `model` and checkpoints.

    A checkpoint is saved before its preview; if one is due by its `state`, the process that saved it may have died in
    between. A signal ends a preview or a validation, which the next start makes again from that checkpoint. All
    checkpoints are on disk when this returns.
    """
    progress = Progress("train", trainer.total_steps * trainer.batch_size, "images")

    def save(due: Mapping[str, bool], is_milestone: bool) -> None:
        saved: dict[str, Any] = {"history": history.state(), "validation": validation.state(), **due}
        saved |= cost.spent
        if trainer.threads is not None:
            saved["threads"] = trainer.threads.state()
        saver.save(Checkpoint(trainer.step, trainer.tensors() | validation.tensors(), saved, is_milestone))

    def show_preview() -> None:
        with model.diffusion.model.register_forward_pre_hook(request.check):
            picture = preview(model, train.seed, environment.sample_batch_size, trainer)
        if picture is not None:
            tracked.image(picture, key=SAMPLES_KEY, step=trainer.images)

    def leave(images: int, code: int) -> NoReturn:
        saver.wait()
        print(f"train: stopped after {images:,} images; the same command resumes from there")
        raise SystemExit(code)

    saved, reported = time.monotonic(), None
    saver = Saver(plan.folder, environment.keep_checkpoints)
    with stop_on_signal() as request, translate_errors(), saver:
        try:
            if state.get("validation_due") and (measured := validate(validation, trainer, request.check)) is not None:
                log_validation(measured, tracked)
            if state.get("preview_due"):
                show_preview()
            for report in trainer.steps():
                # Read once: a later signal waits for the next step and its checkpoint. Read before any synchronisation
                # with the device, which could wait forever if another process has ended.
                left = cost.left(train.minutes)
                stop = asked_to_stop(request, trainer.ranks, is_time_up=left == 0.0)
                last = report.step == trainer.total_steps or left == 0.0
                progress.update(report.images, history.note, left)
                known = len(history.skipped)
                row = history.add(report, last)
                if trainer.verdicts is not reported:
                    reported = trainer.verdicts
                    report_self_check(trainer, tracked)
                measured, validation_due = None, last or report.reaches(train.validate_every_images)
                if validation_due and not stop:
                    try:
                        measured = validate(validation, trainer, request.check)
                        validation_due = False
                    except Stopped as stopped:
                        stop = 128 + stopped.signal
                wants_preview = last or report.reaches(train.preview_every_images)
                # Before the checkpoint that knows them, because a resumed training reports only what that does not.
                report_skipped(history.skipped[known:], plan.dataset, trainer, tracked)
                # The checkpoint is next: an error in what follows must not lose the training.
                every = environment.keep_every_images
                is_milestone = every is not None and report.reaches(every)
                overdue = time.monotonic() - saved > environment.checkpoint_seconds
                if wants_preview or is_milestone or overdue or stop:
                    save({"validation_due": validation_due, "preview_due": wants_preview}, is_milestone)
                    saved = time.monotonic()
                saver.check()
                if row is not None:
                    log_row(row, tracked)
                if measured is not None:
                    log_validation(measured, tracked)
                if stop:
                    leave(report.images, stop)
                if wants_preview:
                    show_preview()
                if last:
                    break
        except Stopped as stopped:
            images = trainer.images
            # Other processes wait in the next step. It is not kept, because the last checkpoint has the preview due.
            for _ in islice(trainer.steps(), int(trainer.ranks.count > 1)):
                asked_to_stop(request, trainer.ranks)
            leave(images, 128 + stopped.signal)
        finally:
            progress.close()
