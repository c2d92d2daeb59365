"""Artifacts of a run on Prefect's pages: data, metrics, samples, the link to MLflow, and the gate's decision."""

import base64
import io
import json
from typing import Any

from PIL import Image
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from diffusion_core.stages.paths import DATA_METRICS, DATA_PAGE, METRICS, PROMOTION, PUBLICATION, REPORT, SAMPLES

# What stands beside each metric: its 95% interval, and its value for real images and for noise.
BESIDE = ("low", "high", "floor", "ceiling")
# The image is stored in Prefect's database.
LARGEST_PICTURE = (1000, 1000)


def show_data() -> None:
    """Show the numbers of the images, and say where their page is."""
    numbers = json.loads(DATA_METRICS.read_text(encoding="utf-8"))
    rows = [{"number": name, "value": value} for name, value in _flat(numbers).items()]
    about = f"The images. Their page is {DATA_PAGE}; MLflow has it as {DATA_PAGE.name} of the training run."
    create_table_artifact(rows, key="data", description=about)


def _flat(numbers: dict[str, Any], prefix: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in numbers.items():
        found |= _flat(value, f"{prefix}{name}: ") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def show_metrics() -> None:
    """Show each metric with its 95% interval, floor and ceiling."""
    figures: dict[str, float] = json.loads(METRICS.read_text(encoding="utf-8"))
    rows = [
        {"metric": name, "value": value, **{what: figures.get(f"{name}_{what}", "") for what in BESIDE}}
        for name, value in figures.items()
        if not name.endswith(tuple(f"_{what}" for what in BESIDE))
    ]
    about = "The samples against the real images; floor: real images in their place, ceiling: noise."
    create_table_artifact(rows, key="metrics", description=about)


def show_samples() -> None:
    """Show the grid of samples, embedded because Prefect's pages cannot show files."""
    picture = io.BytesIO()
    with Image.open(SAMPLES / "grid.png") as grid:
        grid.thumbnail(LARGEST_PICTURE)
        grid.save(picture, format="png")
    text = base64.b64encode(picture.getvalue()).decode()
    create_markdown_artifact(f"![samples](data:image/png;base64,{text})", key="samples", description="Samples.")


def show_run() -> None:
    """Link to the training run in MLflow."""
    published = json.loads(PUBLICATION.read_text(encoding="utf-8"))
    text = f"{published['model']}, version {published['version']}"
    create_link_artifact(published["page"], link_text=text, key="mlflow-run", description="The training run.")


def show_decision() -> None:
    """Show the gate's decision and, if it refused, each failed metric with the difference."""
    decision = json.loads(PROMOTION.read_text(encoding="utf-8"))
    create_markdown_artifact(
        f"**{decision['outcome']}**: {decision['sentence']}",
        key="promotion",
        description="The gate in front of the alias champion.",
    )


def show_report() -> None:
    """Link to the run in MLflow, which has the report among its artifacts."""
    published = json.loads(PUBLICATION.read_text(encoding="utf-8"))
    about = (
        f"The page of the run: {REPORT} in the checkout, and {REPORT.name} among the artifacts of this run in MLflow."
    )
    create_link_artifact(published["page"], link_text=REPORT.name, key="report", description=about)
