"""What people read on MLflow's pages: names and descriptions of runs, versions and registered models.

Descriptions are Markdown. What is written here lies between a heading of its own and a comment, which pages hide.
The text above and below stays: somebody may have written it.
"""

from urllib.parse import quote

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE

from diffusion_core.config.settings import TrainSettings
from diffusion_core.lineage.dataset_version import DatasetVersion
from diffusion_core.registry.versions import find_champion

GRID = "samples/grid.png"
COLORS = {1: "grayscale", 3: "RGB", 4: "RGBA"}
VERSION, CHAMPION, DECIDED = "### Published", "### Champion", "### Decision"


def run_tags(dataset: DatasetVersion, train: TrainSettings) -> dict[str, str]:
    """Return the tags with name and description of a training run.

    Args:
        dataset: the training data.
        train: the section `train` of params.yaml.
    """
    size, objective = str(dataset.profile["size"]), train.process.objective
    return {
        MLFLOW_RUN_NAME: f"{dataset.name} {size.replace(' ', '')} {objective}, {train.images:,} images",
        MLFLOW_RUN_NOTE: (
            f"Training on **{dataset.name}**, {dataset.profile['train']:,} images of {size} pixels in"
            f" {COLORS[int(dataset.profile['channels'])]}, by the objective `{objective}`. In all charts, Step is the"
            f" number of training images, {train.images:,} in the end. Training images are beside the samples."
        ),
    }


def describe_run(client: MlflowClient, version: ModelVersion) -> None:
    """Add to the description of a version's run which version it made, what the gate decided, and samples."""
    run = client.get_run(str(version.run_id))
    sentence = _section(version.description, DECIDED).partition("\n")[0]
    decided = f": {sentence}" if sentence else ""
    link = f"[version {version.version} of {version.name}](#/models/{quote(version.name)}/versions/{version.version})"
    before = run.data.tags.get(MLFLOW_RUN_NOTE, "")
    wanted = _with_section(before, VERSION, f"{link}{decided}\n\n{_picture(client, run)}")
    if wanted != before:
        client.set_tag(run.info.run_id, MLFLOW_RUN_NOTE, wanted)


def describe_version(client: MlflowClient, version: ModelVersion, sentence: str) -> None:
    """Describe a version by the gate's sentence and its samples."""
    picture = _picture(client, client.get_run(str(version.run_id)))
    before = version.description or ""
    wanted = _with_section(before, DECIDED, f"{sentence}\n\n{picture}")
    if wanted != before:
        client.update_model_version(version.name, version.version, description=wanted)


def describe_model(client: MlflowClient, name: str) -> None:
    """Describe a registered model by its champion."""
    champion = find_champion(client, name)
    if champion is None:
        return
    before = client.get_registered_model(name).description or ""
    body = _section(champion.description, DECIDED) or f"version {champion.version}"
    wanted = _with_section(before, CHAMPION, body)
    if wanted != before:
        client.update_registered_model(name, description=wanted)


def _section(text: str | None, heading: str) -> str:
    """Return what a description has below one of the headings, or nothing."""
    return _parts(text or "", heading)[1].strip()


def _with_section(text: str, heading: str, body: str) -> str:
    above, _, below = _parts(text, heading)
    parts = (above.strip(), f"{heading}\n{body.strip()}\n{_end(heading)}", below.strip())
    return "\n\n".join(part for part in parts if part)


def _parts(text: str, heading: str) -> tuple[str, str, str]:
    """Return what is above, in and below a section; all of a text without one, or without its end, is above."""
    before, ended, below = text.partition(_end(heading))
    above, found, body = before.rpartition(f"{heading}\n")
    return (above, body, below) if found and ended else (text, "", "")


def _end(heading: str) -> str:
    return f"<!-- end of {heading.lstrip('# ')}: write above or below -->"


def _picture(client: MlflowClient, run: Run) -> str:
    """Return the samples of a run as Markdown, or nothing if it has none."""
    if not any(file.path == GRID for file in client.list_artifacts(run.info.run_id, GRID.partition("/")[0])):
        return ""
    # Below the address of the pages, wherever a proxy puts them.
    return f"![samples](get-artifact?path={quote(GRID, safe='')}&run_uuid={run.info.run_id})"
