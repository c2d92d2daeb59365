"""The versions of the registered model: their files, their metrics, and the champion.

Everything is stored in the tags of the versions, so that it is available on every machine.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from diffusion_core.errors import UserError
from diffusion_core.lineage.evaluation import Evaluation
from diffusion_core.lineage.promotion import Decision
from diffusion_core.lineage.saved_model import DESCRIPTION, WEIGHTS, TrainedModel, load_model, model_digest

CHAMPION = "champion"

MODEL_DIGEST = "model_digest"
EVALUATION_KEY = "evaluation_key"
METRIC = "metric."
# Tags that `publish` writes: the commit, and the hash of each output in dvc.lock.
COMMIT = "git_commit"
OUTPUT = "dvc."
# Folder of a pyfunc's files among its artifacts.
ARTIFACTS = "artifacts"


class Changed(UserError):
    """The files of a version are not those that were registered."""


@dataclass(frozen=True)
class Named:
    """What registered versions name.

    Attributes:
        outputs: paths of outputs, by their hashes in dvc.lock.
        commits: commits of versions that name their outputs too, so that these commits may be gone.
        only_commits: commits of versions that name no output.
    """

    outputs: dict[str, str]
    commits: set[str]
    only_commits: set[str]


def find_version(client: MlflowClient, name: str, digest: str) -> ModelVersion | None:
    """Return the oldest version of the registered model `name` with files of this digest, or None."""
    found = client.search_model_versions(f"name = '{name}' and tags.{MODEL_DIGEST} = '{digest}'")
    return min(found, key=lambda each: int(each.version), default=None)


def find_champion(client: MlflowClient, name: str) -> ModelVersion | None:
    """Return the version of the registered model `name` with the alias `champion`, or None."""
    return _found(client.get_model_version_by_alias, name, CHAMPION)


def named_by_versions(client: MlflowClient) -> Named | None:
    """Return what the versions of all registered models name, or None if there is no version."""
    tags = [dict(version.tags) for version in _all_versions(client)]
    if not tags:
        return None
    named = Named({}, set(), set())
    for each in tags:
        outputs = {value: name.removeprefix(OUTPUT) for name, value in each.items() if name.startswith(OUTPUT)}
        named.outputs.update(outputs)
        if COMMIT in each:
            (named.commits if outputs else named.only_commits).add(each[COMMIT])
    return named


def versions_of(client: MlflowClient, file: Path, entry: str) -> dict[str, Callable[[], AbstractContextManager[Path]]]:
    """Return the versions of all registered models whose tags say that `file` has this hash, newest first.

    Returns:
        For each version, by its name and number, what `downloaded` does with it.
    """
    found = [each for each in _all_versions(client) if each.tags.get(f"{OUTPUT}{file.as_posix()}") == entry]
    found.sort(key=lambda each: -int(each.version))
    return {f"version {each.version} of {each.name}": partial(downloaded, each) for each in found}


def _all_versions(client: MlflowClient) -> list[ModelVersion]:
    found: list[ModelVersion] = []
    token: str | None = None
    while token != "":
        page = client.search_model_versions(page_token=token)
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
    """Write the metrics and their key to the version's tags.

    The old key is removed first and the new key written last, so that a key never has metrics of two evaluations.
    """
    wanted = {METRIC + name: repr(value) for name, value in evaluation.figures.items()}
    wanted[EVALUATION_KEY] = evaluation.key
    standing = {tag: value for tag, value in version.tags.items() if tag == EVALUATION_KEY or tag.startswith(METRIC)}
    if standing == wanted:
        return
    for tag in sorted(standing, key=lambda each: each != EVALUATION_KEY):
        client.delete_model_version_tag(version.name, version.version, tag)
    for tag, value in wanted.items():
        client.set_model_version_tag(version.name, version.version, tag, value)


def recorded_evaluation(version: ModelVersion) -> Evaluation | None:
    """Return the evaluation in the version's tags, or None if there is no complete one."""
    if EVALUATION_KEY not in version.tags:
        return None
    figures = {tag.removeprefix(METRIC): float(value) for tag, value in version.tags.items() if tag.startswith(METRIC)}
    return Evaluation(version.tags[EVALUATION_KEY], figures)


@contextmanager
def downloaded(version: ModelVersion) -> Iterator[Path]:
    """Yield a temporary folder with the version's `model.safetensors` and `model.json`.

    Raises:
        Changed: the files are not those that were registered.
    """
    with tempfile.TemporaryDirectory() as folder:
        mlflow.artifacts.download_artifacts(f"models:/{version.name}/{version.version}", dst_path=folder)
        found = next(Path(folder).rglob(WEIGHTS), None)
        if (
            found is None
            or not (found.parent / DESCRIPTION).exists()
            or model_digest(found.parent) != version.tags.get(MODEL_DIGEST)
        ):
            raise Changed(
                f"the files of version {version.version} of {version.name} are not those that were registered: restore"
                " the store's artifacts from a backup, or move the alias to another version"
            )
        yield found.parent


def restore(client: MlflowClient, version: ModelVersion, folder: Path) -> bool:
    """Upload a version's two files again from `folder`; return whether the store has the registered files now."""
    with tempfile.TemporaryDirectory() as temporary:
        # A stage may write `folder` meanwhile.
        copy = Path(temporary)
        for name in (WEIGHTS, DESCRIPTION):
            shutil.copyfile(folder / name, copy / name)
        if model_digest(copy) != version.tags.get(MODEL_DIGEST):
            return False
        model = str(version.source).removeprefix("models:/")
        places = [each.path for each in client.list_logged_model_artifacts(model, ARTIFACTS) if each.is_dir]
        for name in (WEIGHTS, DESCRIPTION):
            client.log_model_artifact(model, str(copy / name), places[0] if places else f"{ARTIFACTS}/models")
    try:
        with downloaded(version):
            return True
    except Changed:
        return False


def load_version(client: MlflowClient, name: str, version: str = CHAMPION) -> TrainedModel:
    """Load a version of a registered model, without running code of the store: it reads weights and JSON alone.

    Args:
        client: client of the store.
        name: name of the registered model.
        version: an alias, or the number of a version.

    Raises:
        UserError: there is no such version, or its files are not those that were registered.
    """
    look = client.get_model_version if version.isdecimal() else client.get_model_version_by_alias
    found = _found(look, name, version)
    if found is None:
        raise UserError(f"{name} has no version {version} in this store: publish a model, or name another version")
    with downloaded(found) as folder:
        return load_model(folder)


def settle(client: MlflowClient, version: ModelVersion, decision: Decision) -> bool:
    """Write the decision to the version's tags and then, if it is promoted, move the alias to it.

    Returns:
        Whether that is done; false if another process has moved the alias since, so that the decision is on an old one.
    """
    if decision.outcome == "unchanged":
        return True
    if decision.outcome == "promoted" and not _is_champion(client, version.name, decision.champion):
        return False
    tags = {"gate": decision.outcome, "gate_reasons": "; ".join(decision.reasons) or "none"}
    if decision.champion is not None:
        tags["champion_before"] = str(decision.champion)
    for tag, value in tags.items():
        client.set_model_version_tag(version.name, version.version, tag, value)
    if decision.outcome == "promoted":
        if not _is_champion(client, version.name, decision.champion):
            return False
        client.set_registered_model_alias(version.name, CHAMPION, version.version)
    return True


def _is_champion(client: MlflowClient, name: str, number: int | None) -> bool:
    """Return whether the alias names this version now, or none where `number` says none."""
    champion = find_champion(client, name)
    return number == (None if champion is None else int(champion.version))
