"""The page of a run in Prefect, an artifact that grows with the run: data, training, samples, metrics, decision."""

import base64
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import UUID

from PIL import Image
from prefect import runtime
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate

from diffusion_core.stages.moved import moved_by
from diffusion_core.stages.paths import (
    DATA_METRICS,
    DATA_PAGE,
    METRICS,
    PROMOTION,
    PUBLICATION,
    REPORT,
    RUN_INFO,
    SAMPLES,
)

# What stands beside each metric: its 95% interval, and its value for real images and for noise.
BESIDE = ("low", "high", "floor", "ceiling")
OF_TRAINING = ("trained_images", "model_images", "git_commit", "git_dirty", "dataset_md5")
# The image is stored in Prefect's database.
LARGEST_PICTURE = (1000, 1000)


class RunPage:
    """The page; each method adds a section of what the last stage made."""

    def __init__(self) -> None:
        self._sections: list[str] = []
        self._artifact: UUID | None = None

    def data(self) -> None:
        """Add the numbers of the images, without those of each class."""
        found = read(DATA_METRICS)
        numbers = {name: value for name, value in found.items() if not isinstance(value, dict)}
        numbers |= {f"to {name}": value for name, value in found.get("split", {}).items()}
        about = f"Their page is `{DATA_PAGE}`; MLflow has it as `{DATA_PAGE.name}` of the training run."
        self._add("Data", _table(("number", "value"), numbers.items()), about)

    def training(self) -> None:
        """Add how far the model was trained, and by which code and data."""
        info = read(RUN_INFO)
        known = [(name, info[name]) for name in OF_TRAINING if info.get(name) is not None]
        self._add("Training", _table(("what", "value"), known))

    def samples(self) -> None:
        """Add the grid of samples, embedded because Prefect's pages cannot show files."""
        picture = io.BytesIO()
        with Image.open(SAMPLES / "grid.png") as grid:
            grid.thumbnail(LARGEST_PICTURE)
            grid.save(picture, format="png")
        text = base64.b64encode(picture.getvalue()).decode()
        self._add("Samples", f"![samples](data:image/png;base64,{text})")

    def metrics(self) -> None:
        """Add each metric with its 95% interval, floor and ceiling."""
        values: dict[str, float] = read(METRICS)
        rows = [
            (name, value, *(values.get(f"{name}_{what}", "") for what in BESIDE))
            for name, value in values.items()
            if not name.endswith(tuple(f"_{what}" for what in BESIDE))
        ]
        about = "Of the samples against the real images; floor: real images in their place, ceiling: noise."
        self._add("Metrics", _table(("metric", "value", *BESIDE), rows), about)

    def decision(self) -> None:
        """Add the gate's decision as the first section."""
        decision = read(PROMOTION)
        self._sections.insert(0, _section("Decision", f"**{decision['outcome']}**: {decision['sentence']}"))
        self._send()

    def network(self) -> None:
        """Add what each stage moved over this machine's network."""
        moved = moved_by(str(runtime.flow_run.id))
        rows = [(stage, f"{count / 1e6:,.1f}") for stage, count in moved.items()]
        self._add("Network", _table(("stage", "MB received and sent by this machine"), rows))

    def links(self) -> None:
        """Add the version, and where its run and report are."""
        published = read(PUBLICATION)
        version = f"{published['model']}, version {published['version']}"
        self._add("Links", f"[{version} in MLflow]({published['page']}), whose artifact `{REPORT.name}` is the report")

    def _add(self, title: str, *paragraphs: str) -> None:
        self._sections.append(_section(title, *paragraphs))
        self._send()

    def _send(self) -> None:
        text = "\n\n".join(self._sections)
        if self._artifact is None:
            created = create_markdown_artifact(text, key="run", description=runtime.flow_run.name)
            assert isinstance(created, UUID)
            self._artifact = created
            return
        get_client(sync_client=True).update_artifact(self._artifact, ArtifactUpdate(data=text))


def read(file: Path) -> dict[str, Any]:
    """Return the content of a JSON file."""
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _section(title: str, *paragraphs: str) -> str:
    return "\n\n".join((f"## {title}", *paragraphs))


def _table(names: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a table in Markdown; names of classes are other people's, so a bar in one does not end its cell."""
    lines = [[*names], *([f"{each:.5g}" if isinstance(each, float) else str(each) for each in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("|".join(("", *(cell.replace("|", r"\|") for cell in line), "")) for line in lines)
