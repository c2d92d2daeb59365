"""Write plots/report.html, the page of a run, and store it with the run in MLflow."""

import numpy as np

from diffusion_core.config.environment import Environment
from diffusion_core.data.dataset import INFO, DatasetInfo
from diffusion_core.data.shards import read_array, reading
from diffusion_core.documents import read_json, read_small
from diffusion_core.errors import UserError
from diffusion_core.files import write_whole
from diffusion_core.lineage.evaluation import FiguresOrigin
from diffusion_core.lineage.promotion import Decision
from diffusion_core.lineage.record import RunInfo
from diffusion_core.registry.connection import answering, connect
from diffusion_core.registry.published import Published, published
from diffusion_core.report.curves import training_curves
from diffusion_core.report.page import Content, report
from diffusion_core.stages.paths import (
    DATA_METRICS,
    LOSS,
    METRICS_ORIGIN,
    PLOTS,
    PREPARED,
    PROMOTION,
    PUBLICATION,
    REPORT,
    RUN_INFO,
    SAMPLES,
    needs,
)

PICTURES = {
    "both": PLOTS / "real_and_generated.png",
    "metrics": PLOTS / "distances.png",
    "nearest": PLOTS / "nearest.png",
}


def run(environment: Environment) -> None:
    """Write the page of models/, samples/ and metrics/, and of the gate's decision if it was made on them.

    Raises:
        UserError: an output of another stage is missing or damaged, or the model is not published.
        Unavailable: the tracking store does not answer.
    """
    info = RunInfo.read(RUN_INFO, "train")
    origin = FiguresOrigin.read(METRICS_ORIGIN, "evaluate")
    name, version = _publication()
    client = connect(environment)
    with answering(environment):
        known = published(client, name, version, environment)
        content = _content(info, origin, known)
        REPORT.parent.mkdir(exist_ok=True)
        write_whole(REPORT, report(content))
        client.log_artifact(known.run_id, str(REPORT))
    print(f"report: {REPORT} shows the run; MLflow has it too, at {known.page}")


def _publication() -> tuple[str, int]:
    """Return the name of the registered model and the version that `publish` wrote down."""
    if not PUBLICATION.exists():
        raise UserError("the model is not published: run `python -m diffusion_core publish`")
    content = read_json(PUBLICATION)
    return str(content["model"]), int(content["version"])


def _content(info: RunInfo, origin: FiguresOrigin, known: Published) -> Content:
    labels = SAMPLES / "labels.npy"
    images = np.array(read_array(needs(SAMPLES / "samples.npy", "sample")))
    with reading(PREPARED / INFO):
        dataset = DatasetInfo.model_validate_json(read_small(needs(PREPARED / INFO, "prepare")))
    numbers = read_json(needs(DATA_METRICS, "prepare"))
    decision = _decision(origin, known.version)
    return Content(
        title=f"{known.name}, version {known.version}",
        decision=decision,
        evaluation=origin.evaluation,
        images=images,
        labels=np.array(read_array(labels)) if labels.exists() else None,
        classes=dataset.classes,
        denoising=needs(SAMPLES / "denoising.png", "sample"),
        plots={title: needs(file, "evaluate") for title, file in PICTURES.items()},
        curves=training_curves(needs(LOSS, "train")),
        data={
            "training images": f"{dataset.train:,}",
            "validation images": f"{dataset.validation:,}",
            "classes": f"{len(dataset.classes)}",
            "size": " x ".join(map(str, (*dataset.image_size, dataset.channels))),
            "near-duplicates": f"{numbers['duplicates']:,}",
            "quarantined files": f"{numbers['quarantined']:,}",
        },
        lineage={
            "model": f"{known.name}, version {known.version}",
            "run in MLflow": known.page,
            "commit": f"{info.git_commit or 'unknown'}{', with changes' if info.git_dirty else ''}",
            "data, DVC's md5": info.dataset_md5 or "unknown",
            "data, sha256": info.dataset_digest,
            "parameters, sha256": info.params_digest,
            "metrics' key": origin.evaluation.key,
            **known.tags,
        },
        cost=known.cost,
        changes=known.changes,
    )


def _decision(origin: FiguresOrigin, version: int) -> Decision | None:
    """Return the last decision of the gate, if it is on this version with these metrics."""
    try:
        decision = Decision.model_validate_json(read_small(PROMOTION))
    except (OSError, ValueError):
        return None
    grounds = decision.grounds
    return decision if (grounds.version, grounds.evaluation) == (version, origin.evaluation) else None
