"""Train the model: data/prepared to models/, and plots/loss.csv."""

import hashlib
import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import TrainSettings
from diffusion_core.data.dataset import ImageDataset
from diffusion_core.errors import UserError
from diffusion_core.files import replaced_files
from diffusion_core.lineage.provenance import dataset_version, dvc_tags, git_state, known_tags, provenance_tags
from diffusion_core.lineage.record import RunInfo
from diffusion_core.lineage.saved_model import TrainedModel, build_model, save_model
from diffusion_core.randomness import derive_seed
from diffusion_core.registry.tracking import Run, training_run
from diffusion_core.runtime.allocator import keep_freed_memory
from diffusion_core.runtime.compile_cache import use_compile_cache
from diffusion_core.runtime.device import choose_compiled, choose_device, choose_dtype, choose_threads
from diffusion_core.runtime.distributed import Ranks, assert_same_on_all_ranks
from diffusion_core.stages.paths import LOSS, MODELS, PREPARED, RUN_INFO, needs
from diffusion_core.stages.preview import preview
from diffusion_core.training.checkpoint import (
    Checkpoint,
    load_newest,
    only_training,
    save_checkpoint,
    shared_checkpoint,
)
from diffusion_core.training.report import History, Progress
from diffusion_core.training.stopping import asked_to_stop, run_worker, stop_on_signal, translate_errors
from diffusion_core.training.trainer import Trainer


@dataclass(frozen=True)
class Plan:
    """The data and options of a training.

    Attributes:
        dataset: the training images.
        network: arguments of `Unet`.
        process: arguments of `GaussianDiffusion`.
        params_digest: sha256 of the section `train` of params.yaml.
        folder: folder of the checkpoints, specific to data and options.
    """

    dataset: ImageDataset
    network: dict[str, Any]
    process: dict[str, Any]
    params_digest: str
    folder: Path


@dataclass(frozen=True)
class ShardData:
    """The prepared images as `TrainingData`.

    Attributes:
        dataset: the training images.
    """

    dataset: ImageDataset

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return images, uint8 (B, C, H, W), and labels, int64 (B,), or None."""
        which = indices.numpy()
        images = torch.from_numpy(self.dataset.images(which)).permute(0, 3, 1, 2)
        labels = self.dataset.labels
        return images, None if labels is None else torch.from_numpy(labels[which])


def run(
    train: TrainSettings,
    environment: Environment,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
) -> None:
    """Train, or resume from a checkpoint of the same data and parameters.

    With several processes, only the main rank writes checkpoints and the model, and uses MLflow.

    Raises:
        UserError: data/prepared is missing, a checkpoint does not fit, another process trains with the same data and
            parameters, the batch cannot be divided, or the tracking store cannot be used.
        SystemExit: after TERM or INT, with a checkpoint and the exit code 128 + signal.
    """
    plan = make_plan(train, environment)
    trainer = _trainer(plan, train, environment, ranks)
    assert_same_on_all_ranks(f"{plan.dataset.info.digest} {plan.params_digest} {trainer.precision.dtype}", ranks)
    with only_training(plan.folder) if ranks.is_main else nullcontext():
        _train(trainer, plan, train, environment, ranks)


def _train(trainer: Trainer, plan: Plan, train: TrainSettings, environment: Environment, ranks: Ranks) -> None:
    checkpoint = shared_checkpoint(load_newest(plan.folder) if ranks.is_main else None, ranks)
    if checkpoint is not None:
        _restore(trainer, checkpoint, plan.folder)
        if ranks.is_main:
            print(f"train: resumes after {trainer.images:,} images", flush=True)
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
        run_id=state.get("run_id"),
        params={"train": train.model_dump(mode="json")},
        dataset=version,
        tags=tags,
    ) as tracked:
        history = History(train.report_every_images, state.get("history"))
        model = TrainedModel(trainer.ema.module, plan.dataset.class_counts)
        _steps(trainer, model, train, environment, tracked, history, plan.folder)
        info = RunInfo(
            run_id=tracked.id,
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
    shutil.rmtree(plan.folder)


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


def _restore(trainer: Trainer, checkpoint: Checkpoint, folder: Path) -> None:
    try:
        trainer.restore(checkpoint.step, checkpoint.tensors)
        if trainer.threads is not None and "threads" in checkpoint.state:
            trainer.threads.restore(checkpoint.state["threads"])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
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
    folder: Path,
) -> None:
    """Run the remaining steps, with reports, previews of `model` and checkpoints."""
    progress = Progress(trainer.total_steps * trainer.batch_size, trainer.images)

    def save() -> None:
        state = {"run_id": tracked.id, "history": history.state()}
        if trainer.threads is not None:
            state["threads"] = trainer.threads.state()
        save_checkpoint(folder, Checkpoint(trainer.step, trainer.tensors(), state))

    saved, reported = time.monotonic(), None
    with stop_on_signal() as request, translate_errors():
        try:
            for report in trainer.steps():
                # Read once: a later signal waits for the next step and its checkpoint. Read before any synchronisation
                # with the device, which could wait forever if another process has ended.
                stop = asked_to_stop(request, trainer.ranks)
                last = report.step == trainer.total_steps
                progress.step(trainer.batch_size)
                row = history.add(report, last)
                if trainer.verdicts is not reported:
                    reported = trainer.verdicts
                    _report_self_check(trainer, tracked)
                wants_preview = last or report.reaches(train.preview_every_images)
                # The checkpoint is first: a stop must not wait for a slow tracking server or a preview, and an error in
                # one of them must not lose the training.
                overdue = time.monotonic() - saved > environment.checkpoint_seconds
                if wants_preview or overdue or stop:
                    save()
                    saved = time.monotonic()
                if row is not None:
                    # MLflow's step is the number of images.
                    curves = {f"train/{name}": value for name, value in row.items() if name != "images"}
                    tracked.metrics(curves, step=report.images)
                    progress.report(row)
                if stop:
                    print(f"train: stopped after {report.images:,} images; the same command resumes from there")
                    raise SystemExit(stop)
                if wants_preview:
                    picture = preview(model, train.seed, environment.sample_batch_size, trainer)
                    if picture is not None:
                        tracked.image(picture, key="samples", step=report.images)
        finally:
            progress.close()


def _report_self_check(trainer: Trainer, tracked: Run) -> None:
    verdicts = "; ".join(map(str, trainer.verdicts)) or "float32, eager: nothing to compare"
    print(f"train: self-check: {verdicts}", flush=True)
    tracked.tag("self_check", verdicts)


def make_plan(train: TrainSettings, environment: Environment) -> Plan:
    """Return the plan of the training on data/prepared.

    Raises:
        UserError: data/prepared is missing, or the network does not fit its images.
    """
    dataset = ImageDataset.open(needs(PREPARED, "prepare"), "train")
    network, process = options(train, dataset)
    digest = _digest(train.model_dump_json())
    folder = environment.checkpoints / _digest(f"{dataset.info.digest} {digest}")[:16]
    return Plan(dataset, network, process, digest, folder)


def options(train: TrainSettings, dataset: ImageDataset) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of `Unet` and `GaussianDiffusion` for the dataset.

    Raises:
        UserError: the network does not fit the image size.
    """
    downsampling = 2 ** (len(train.network.dim_mults) - 1)
    height, width = dataset.info.image_size
    if height % downsampling or width % downsampling:
        raise UserError(
            f"the images in {PREPARED} are {height} x {width}; with {len(train.network.dim_mults)} levels in"
            f" train.network.dim_mults each side must be a multiple of {downsampling}: run `dvc repro prepare`"
        )
    classes = len(dataset.info.classes) if train.network.class_conditional else 0
    network = train.network.model_dump(exclude={"class_conditional"})
    network |= {"channels": dataset.info.channels, "num_classes": classes or None}
    process = train.process.model_dump(mode="json") | {"image_size": dataset.info.image_size}
    return network, process


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
