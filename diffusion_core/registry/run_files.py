"""Files of a run, as the store has them."""

import tempfile
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from diffusion_core.registry.versions import moved_artifacts


def put_file(client: MlflowClient, run_id: str, file: str, text: str) -> None:
    """Log a text as a file of a run, unless the run has it already."""
    if run_file(client, client.get_run(run_id), file) != text.encode():
        client.log_text(run_id, text, file)


def run_file(client: MlflowClient, run: Run, file: str) -> bytes | None:
    """Return the content of a file of a run, or None if the run has no such file.

    Args:
        client: client of the current store.
        run: the run.
        file: its path among the run's artifacts.
    """
    if (moved := moved_artifacts(run.info.artifact_uri)) is not None:
        return (moved / file).read_bytes() if (moved / file).is_file() else None
    if file not in [each.path for each in client.list_artifacts(run.info.run_id, file.rpartition("/")[0])]:
        return None
    with tempfile.TemporaryDirectory() as place:
        return Path(client.download_artifacts(run.info.run_id, file, place)).read_bytes()
