"""The versions of the registered model: their files, their metrics, and the champion.

Everything is stored in the tags of the versions, so that it is available on every machine.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from diffusion_core.errors import UserError
from diffusion_core.lineage.evaluation import Evaluation
from diffusion_core.lineage.model_files import DESCRIPTION, WEIGHTS, model_digest
from diffusion_core.registry.connection import ARTIFACTS as STORE_ARTIFACTS
from diffusion_core.registry.connection import artifact_folder, is_transient, reason, sqlite_file

if TYPE_CHECKING:
    from diffusion_core.config.settings import SampleSettings
    from diffusion_core.lineage.saved_model import TrainedModel

CHAMPION = "champion"
# Versions that a message names.
MOST_SHOWN = 10
# Stores refuse to look for a larger number.
LARGEST_NUMBER = 2**31 - 1

MODEL_DIGEST = "model_digest"
EVALUATION = "evaluation"
# The gate's decision as JSON, and the version that was the champion until then.
DECISION = "decision"
CHAMPION_BEFORE = "champion_before"
# Tags that `publish` writes: the commit, and how the samples were made by which the gate judges.
COMMIT, SAMPLE = "git_commit", "sample"
# Of a run in MLflow.
RUN_ID = re.compile(r"[0-9a-f]{32}")
# Folder of a pyfunc's files among its artifacts.
ARTIFACTS = "artifacts"


class Changed(UserError):
    """The files of a version are not those that were registered."""


def find_version(client: MlflowClient, name: str, digest: str) -> ModelVersion | None:
    """Return the oldest version of the registered model `name` with files of this digest, or None."""
    found = client.search_model_versions(f"name = '{name}' and tags.{MODEL_DIGEST} = '{digest}'")
    return min(found, key=lambda each: int(each.version), default=None)


def find_champion(client: MlflowClient, name: str) -> ModelVersion | None:
    """Return the version of the registered model `name` with the alias `champion`, or None."""
    return _found(client.get_model_version_by_alias, name, CHAMPION)


def find_named(client: MlflowClient, name: str, version: str) -> ModelVersion:
    """Return a version of the registered model `name`, by its number or an alias.

    Raises:
        UserError: there is no such version.
    """
    look = client.get_model_version if version.isdecimal() else client.get_model_version_by_alias
    found = None if version.isdecimal() and int(version) > LARGEST_NUMBER else _found(look, name, version)
    if found is None:
        there = [
            f"{number} ({', '.join(names)})" if names else number
            for number, names in named_aliases(client, name).items()
        ]
        hint = f"its versions are {', '.join(there[:MOST_SHOWN][::-1])}" if there else _others(client)
        kind = "version" if version.isdecimal() else "alias"
        raise UserError(f"{name} has no {kind} {version} in this store: {hint}")
    return found


def _others(client: MlflowClient) -> str:
    names = [each.name for each in client.search_registered_models(max_results=MOST_SHOWN)]
    return f"name one of {', '.join(names)}" if names else "publish a model"


def find_made(client: MlflowClient, run_id: str) -> ModelVersion:
    """Return the newest version of a registered model that a run made.

    Raises:
        UserError: there is none.
    """
    version = max(versions_of_run(client, run_id), key=lambda each: int(each.version), default=None)
    if version is None:
        raise UserError(f"the run {run_id} has made no registered version in this store: publish it, or name another")
    return version


def versions_named(client: MlflowClient, name: str) -> list[ModelVersion]:
    """Return all versions of the registered model `name`."""
    return every_version(client, f"name = '{name}'")


def named_aliases(client: MlflowClient, name: str) -> dict[str, list[str]]:
    """Return the aliases of each version of the registered model `name`, newest version first."""
    found = sorted(versions_named(client, name), key=lambda each: -int(each.version))
    aliases = client.get_registered_model(name).aliases if found else {}
    return {
        str(each.version): [alias for alias, number in aliases.items() if str(number) == str(each.version)]
        for each in found
    }


def versions_of_run(client: MlflowClient, run_id: str) -> list[ModelVersion]:
    """Return the versions of all registered models that a run made."""
    return every_version(client, f"run_id = '{run_id}'")


def stored_model(version: ModelVersion) -> str | None:
    """Return the id of the stored model of a version, or None if its files are the artifacts of a run."""
    source = str(version.source)
    return source.removeprefix("models:/") if source.startswith("models:/") else None


def every_version(client: MlflowClient, which: str | None = None) -> list[ModelVersion]:
    """Return the versions of all registered models, or those of MLflow's filter `which`."""
    found: list[ModelVersion] = []
    token: str | None = None
    while token != "":
        page = client.search_model_versions(which, page_token=token)
        found += page
        token = page.token or ""
    return found


def _found(look: Callable[[str, str], ModelVersion], name: str, version: str) -> ModelVersion | None:
    try:
        return look(name, version)
    except MlflowException as error:
        # For a missing alias, MLflow reports an invalid parameter.
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def record_evaluation(client: MlflowClient, version: ModelVersion, evaluation: Evaluation) -> None:
    """Write the metrics and their key to one tag of the version, so that a key never has metrics of two evaluations."""
    wanted = evaluation.model_dump_json()
    if version.tags.get(EVALUATION) != wanted:
        client.set_model_version_tag(version.name, version.version, EVALUATION, wanted)


def recorded_evaluation(version: ModelVersion) -> Evaluation | None:
    """Return the evaluation in the version's tags, or None if there is none that this code can read."""
    try:
        return Evaluation.model_validate_json(version.tags.get(EVALUATION, ""))
    except ValueError:
        return None


def recorded_sample(version: ModelVersion) -> "SampleSettings | None":
    """Return how the samples were made by which the gate judges the version, or None if this code cannot read it."""
    # Imported here, for want of PyTorch in the commands that only look.
    from diffusion_core.config.settings import SampleSettings

    try:
        return SampleSettings.model_validate_json(version.tags.get(SAMPLE, ""))
    except ValueError:
        return None


@contextmanager
def downloaded(version: ModelVersion) -> Iterator[Path]:
    """Yield a temporary folder with the version's `model.safetensors` and `model.json`.

    Raises:
        Changed: the files cannot be read, or are not those that were registered.
    """
    with tempfile.TemporaryDirectory() as folder:
        _download(version, Path(folder))
        found = next(Path(folder).rglob(WEIGHTS), None)
        if (
            found is None
            or not (found.parent / DESCRIPTION).exists()
            or model_digest(found.parent) != version.tags.get(MODEL_DIGEST)
        ):
            raise Changed(_lost(version, "are missing, or not those that were registered"))
        yield found.parent


def _download(version: ModelVersion, folder: Path) -> None:
    """Copy the artifacts of a version to `folder`.

    Raises:
        Changed: they cannot be read.
        MlflowException: the store stopped answering.
    """
    try:
        if (found := _moved(version)) is not None:
            shutil.copytree(found, folder, dirs_exist_ok=True)
        else:
            mlflow.artifacts.download_artifacts(f"models:/{version.name}/{version.version}", dst_path=str(folder))
    # MLflow ends a generator by StopIteration where a folder is missing, which is a RuntimeError.
    except (MlflowException, OSError, RuntimeError) as error:
        if isinstance(error, MlflowException) and is_transient(error):
            raise
        raise Changed(_lost(version, f"cannot be read ({reason(error)})")) from error


def _lost(version: ModelVersion, what: str) -> str:
    return (
        f"the files of version {version.version} of {version.name} {what}: restore the store's artifacts from a backup"
        " or move them back, or move the alias to another version with `diffusion rollback`"
    )


def _moved(version: ModelVersion) -> Path | None:
    """Return where the artifacts of a version lie now, if its local store was moved with them, or None."""
    here = expected_artifacts(version)
    return here if here is not None and here.is_dir() else None


def expected_artifacts(version: ModelVersion) -> Path | None:
    """Return where the artifacts of a version belong now, if they are not where its local store was, or None."""
    if sqlite_file(mlflow.get_tracking_uri()) is None or not str(version.source).startswith("models:/"):
        return None
    model = MlflowClient().get_logged_model(str(version.source).removeprefix("models:/"))
    return moved_artifacts(model.artifact_location)


def moved_artifacts(location: str) -> Path | None:
    """Return where artifacts belong now, if the local store that had them here was moved, or None.

    MLflow keeps the absolute path of a store's artifacts.
    """
    uri = mlflow.get_tracking_uri()
    if sqlite_file(uri) is None:
        return None
    written = Path(url2pathname(urlsplit(location).path))
    _, found, rest = written.as_posix().rpartition(f"/{STORE_ARTIFACTS}/")
    return artifact_folder(uri) / rest if found and not written.exists() else None


def load_version(client: MlflowClient, name: str, version: str = CHAMPION) -> "TrainedModel":
    """Load a version of a registered model, without running code of the store: it reads weights and JSON alone.

    Args:
        client: client of the store.
        name: name of the registered model.
        version: an alias, or the number of a version.

    Raises:
        UserError: there is no such version, or its files are not those that were registered.
    """
    # Imported here, because what the store knows of a version can be read without PyTorch.
    from diffusion_core.lineage.saved_model import load_model

    with downloaded(find_named(client, name, version)) as folder:
        return load_model(folder)
