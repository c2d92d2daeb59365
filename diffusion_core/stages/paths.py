"""The paths of the files that stages read and write, relative to the project's folder."""

from pathlib import Path

from diffusion_core.errors import UserError

RAW = Path("data/raw")
PREPARED = Path("data/prepared")
REFERENCE = Path("data/reference")

MODELS = Path("models")
RUN_INFO = MODELS / "run_info.json"

SAMPLES = Path("samples")
SAMPLES_ORIGIN = SAMPLES / "origin.json"

METRICS = Path("metrics/evaluate.json")
DATA_METRICS = Path("metrics/data.json")
METRICS_ORIGIN = Path("metrics/origin.json")
PLOTS = Path("plots")
LOSS = PLOTS / "loss.csv"
VALIDATION = PLOTS / "validation.csv"
DATA_PAGE = PLOTS / "data.html"
COMPARISON = PLOTS / "compare.html"
HISTORY = PLOTS / "history.html"
REPORT = PLOTS / "report.html"
TRACE, TRACE_JSON = PLOTS / "trace.html", PLOTS / "trace.json"

# Folders of versions that are trained again.
REPRODUCED = Path(".cache/reproduced")

# Held by the process that trains in this checkout.
TRAINING_LOCK = Path(".cache/training.lock")

# Held by the flow that runs in this checkout.
RUN_LOCK = Path(".cache/pipeline.lock")
# What params.yaml has without the overrides, while a flow with some runs here.
PARAMS_BEFORE = Path(".cache/params.before")

# Results of the last two stages, for the flow's artifacts.
PUBLICATION = Path(".cache/publication.json")
PROMOTION = Path(".cache/promotion.json")


def needs(path: Path, stage: str) -> Path:
    """Return `path` if it exists.

    Raises:
        UserError: it is missing; the message names the stage that makes it.
    """
    if not path.exists():
        raise UserError(f"{path} is missing: run the stage that makes it with `dvc repro {stage}`")
    return path
