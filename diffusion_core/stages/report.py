"""Write plots/report.html, the page of a run, and store it with the run in MLflow."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from diffusion_core.config.environment import Environment
from diffusion_core.data.dataset import INFO, DatasetInfo
from diffusion_core.data.shards import read_array
from diffusion_core.documents import read_json, read_small
from diffusion_core.errors import UserError
from diffusion_core.files import write_whole
from diffusion_core.lineage.evaluation import Evaluation
from diffusion_core.lineage.model_files import model_digest
from diffusion_core.lineage.record import RunInfo
from diffusion_core.registry.connection import answering, connect
from diffusion_core.registry.published import Published, published
from diffusion_core.report.curves import chart, read_points
from diffusion_core.report.page import Content, animation, png_address, report
from diffusion_core.stages.cost import seconds_of
from diffusion_core.stages.paths import (
    DATA_METRICS,
    LOSS,
    METRICS_ORIGIN,
    MODELS,
    PLOTS,
    PREPARED,
    REPORT,
    RUN_INFO,
    SAMPLES,
    VALIDATION,
    needs,
)
from diffusion_core.stages.publish import measured

# Numbers of metrics/data.json, by what they are called on the page.
NUMBERS = {"near-duplicates": "duplicates", "quarantined files": "quarantined"}
CURVES = {"loss": "Loss", "grad_norm": "Gradient norm", "learning_rate": "Learning rate"}
VALIDATED = {"loss": "all timesteps"} | {f"loss_quarter_{number}": f"quarter {number}" for number in range(1, 5)}
PICTURES = {
    "both": PLOTS / "real_and_generated.png",
    "metrics": PLOTS / "distances.png",
    "nearest": PLOTS / "nearest.png",
}


def run(environment: Environment) -> None:
    """Write the page of models/, samples/ and metrics/, and of the gate's decision if it was made on them.

    Raises:
        UserError: an output of another stage is missing, damaged or of another model, or the model is not published.
        Unavailable: the tracking store does not answer.
    """
    info = RunInfo.read(RUN_INFO, "train")
    digest = model_digest(MODELS)
    evaluation = measured(digest)
    client = connect(environment)
    with answering(environment):
        known = published(client, environment, digest)
    if known is None:
        raise UserError(f"{MODELS} is not published: run `python -m diffusion_core publish`")
    page = report(_content(info, evaluation, known))
    REPORT.parent.mkdir(exist_ok=True)
    write_whole(REPORT, page)
    with answering(environment):
        client.log_artifact(known.run_id, str(REPORT))
    print(f"report: {REPORT} shows the run; MLflow has it too, at {known.page}")


@contextmanager
def _reading(file: Path, stage: str) -> Iterator[Path]:
    """Yield a file to read, and convert errors of reading it.

    Raises:
        UserError: it is missing or damaged; the message names the stage that makes it.
    """
    try:
        yield needs(file, stage)
    except (OSError, ValueError, LookupError, TypeError, SyntaxError) as error:
        raise UserError(
            f"{file} is damaged ({error}): make it again with `dvc repro --force --single-item {stage}`"
        ) from error


def _content(info: RunInfo, evaluation: Evaluation, known: Published) -> Content:
    labels = SAMPLES / "labels.npy"
    with _reading(SAMPLES / "samples.npy", "sample") as file:
        images = np.array(read_array(file))
        height, width = images.shape[1:3]
    classes_of = None
    if labels.exists():
        with _reading(labels, "sample") as file:
            classes_of = np.array(read_array(file))
    with _reading(SAMPLES / "denoising.png", "sample") as file:
        denoising, animated = png_address(file), animation(file, height, width)
    plots = {}
    for title, picture in PICTURES.items():
        with _reading(picture, "evaluate") as file:
            plots[title] = png_address(file)
    with _reading(LOSS, "train") as file:
        points = read_points(file, tuple(CURVES))
    with _reading(VALIDATION, "train") as file:
        validation = read_points(file, tuple(VALIDATED))
    charts = [chart(title, "images", [(title, points[name])]) for name, title in CURVES.items()]
    charts.append(chart("Validation loss", "images", [(title, validation[name]) for name, title in VALIDATED.items()]))
    with _reading(PREPARED / INFO, "prepare") as file:
        dataset = DatasetInfo.model_validate_json(read_small(file))
    with _reading(DATA_METRICS, "prepare") as file:
        numbers = read_json(file)
        counts = {name: f"{numbers[key]:,}" for name, key in NUMBERS.items()}
    decision = known.decision
    return Content(
        title=f"{known.name}, version {known.version}",
        decision=decision if decision is not None and decision.grounds.evaluation == evaluation else None,
        evaluation=evaluation,
        images=images,
        labels=classes_of,
        classes=dataset.classes,
        denoising=denoising,
        animated=animated,
        plots=plots,
        charts=[each for each in charts if each is not None],
        data={
            "training images": f"{dataset.train:,}",
            "validation images": f"{dataset.validation:,}",
            "classes": f"{len(dataset.classes)}",
            "size": " x ".join(map(str, (*dataset.image_size, dataset.channels))),
            **counts,
        },
        lineage={
            "model": f"{known.name}, version {known.version}",
            "run in MLflow": known.page,
            "commit": f"{info.git_commit or 'unknown'}{', with changes' if info.git_dirty else ''}",
            "data, DVC's md5": info.dataset_md5 or "unknown",
            "data, sha256": info.dataset_digest,
            "parameters, sha256": info.params_digest,
            "weights after": "unknown" if info.model_images is None else f"{info.model_images:,} images",
            "metrics' key": evaluation.key,
            **known.tags,
        },
        cost=known.cost | _after_training(known.seconds),
        changes=known.changes,
    )


def _after_training(training: float | None) -> dict[str, str]:
    """Return what sampling and evaluation took, where this machine did them, and their share of the whole."""
    sampling, evaluation = seconds_of("sample", SAMPLES / "samples.npy"), seconds_of("evaluate", METRICS_ORIGIN)
    if sampling is None or evaluation is None:
        return {}
    shown = {"sampling": f"{sampling:.1f} s", "evaluation": f"{evaluation:.1f} s"}
    if training is not None:
        whole = training + sampling + evaluation
        shown["share of sampling and evaluation"] = f"{(sampling + evaluation) / whole:.0%} of the run"
    return shown
