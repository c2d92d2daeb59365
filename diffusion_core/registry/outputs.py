"""What registered versions name: commits, and the hashes of outputs in dvc.lock."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from pydantic import TypeAdapter

from diffusion_core.registry.versions import COMMIT, downloaded, every_version

# A tag with the hashes of all outputs. Former versions have a tag for each.
OUTPUTS, OUTPUT = "outputs", "dvc."

_OUTPUTS = TypeAdapter(dict[str, str])


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


def named_by_versions(client: MlflowClient) -> Named | None:
    """Return what the versions of all registered models name, or None if there is no version."""
    versions = every_version(client)
    if not versions:
        return None
    named = Named({}, set(), set())
    for each in versions:
        outputs = {value: path for path, value in outputs_of(each).items()}
        named.outputs.update(outputs)
        if COMMIT in each.tags:
            (named.commits if outputs else named.only_commits).add(each.tags[COMMIT])
    return named


def outputs_of(version: ModelVersion) -> dict[str, str]:
    """Return the hash in dvc.lock of each output with which a version was published, by path."""
    former = {tag.removeprefix(OUTPUT): value for tag, value in version.tags.items() if tag.startswith(OUTPUT)}
    try:
        return former | _OUTPUTS.validate_json(version.tags.get(OUTPUTS, "{}"))
    except ValueError:
        return former


def versions_of(client: MlflowClient, file: Path, entry: str) -> dict[str, Callable[[], AbstractContextManager[Path]]]:
    """Return the versions of all registered models whose tags say that `file` has this hash, newest first.

    Returns:
        For each version, by its name and number, what `downloaded` does with it.
    """
    found = [each for each in every_version(client) if outputs_of(each).get(file.as_posix()) == entry]
    found.sort(key=lambda each: -int(each.version))
    return {f"version {each.version} of {each.name}": partial(downloaded, each) for each in found}
