"""Where a result comes from: the commit, the data and the flow run. Works without git, DVC and Prefect too."""

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, TypeAdapter
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from diffusion_core.errors import UserError

DVC_LOCK = Path("dvc.lock")
PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class DatasetVersion:
    """Which data a model was trained on.

    Attributes:
        name: what people call it.
        digest: sha256 of its content.
        md5: DVC's name of it, or None where DVC did not make it.
        source: where it lies.
    """

    name: str
    digest: str
    md5: str | None
    source: str


@dataclass(frozen=True)
class GitState:
    """The checkout that a result was made from; both are None outside a checkout."""

    commit: str | None
    dirty: bool | None


def dataset_version(folder: Path, digest: str) -> DatasetVersion:
    """Return the version of the dataset in `folder`, a DVC output of this project, whose content has `digest`."""
    path = folder.as_posix()
    return DatasetVersion(name=path, digest=digest, md5=dvc_hashes().get(path), source=path)


def git_state() -> GitState:
    """Return the commit, and whether tracked files differ from it or the package has a file that git does not know.

    dvc.lock does not count: every stage that runs rewrites it, and what it says of the data is recorded by md5.
    """
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", f":(exclude){DVC_LOCK}")
    unknown = _git("ls-files", "--others", "--exclude-standard", "--", ":/diffusion_core")
    return GitState(commit, None if changes is None else bool(changes or unknown))


def dvc_hashes(lock: Path = DVC_LOCK) -> dict[str, str]:
    """Return the md5 that dvc.lock gives for each output, with DVC's ending `.dir` for a folder.

    Left out are those of which dvc.lock tells something else than lies there: whoever runs a stage without DVC leaves
    dvc.lock as it was. As hashing all the data again would take long, folders are told apart by number and size.

    Raises:
        UserError: dvc.lock cannot be read.
    """
    outs = [entry for stage in _locked_stages(lock).values() for entry in stage.outs]
    return {entry.path.as_posix(): entry.md5 for entry in outs if entry.md5 is not None and _lies_there(entry)}


def dvc_tags(within: str = "") -> dict[str, str]:
    """Return the hashes of the outputs whose paths begin with `within` as tags: `dvc.` and the path."""
    return {f"dvc.{path}": md5 for path, md5 in dvc_hashes().items() if path.startswith(within)}


def flow_run_id() -> str | None:
    """Return the id of the Prefect flow run that this process works for, or None."""
    return os.environ.get("PREFECT__FLOW_RUN_ID")


def provenance_tags() -> dict[str, str]:
    """Return the tags of an MLflow run: `git_commit`, `git_dirty` and `prefect_flow_run`, those that are known."""
    git = git_state()
    return known_tags({"git_commit": git.commit, "git_dirty": git.dirty, "prefect_flow_run": flow_run_id()})


def known_tags(tags: Mapping[str, str | bool | None]) -> dict[str, str]:
    """Return tags as MLflow stores them, without those that are None; truth values become `true` and `false`."""
    return {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in tags.items()
        if value is not None
    }


def code_digest(*names: str) -> str:
    """Return the sha256 over the source files of these modules and sub-packages of this package."""
    places = [PACKAGE / name for name in names]
    files = [file for place in places for file in (place.rglob("*.py") if place.is_dir() else [place])]
    return json_digest({file.relative_to(PACKAGE).as_posix(): file.read_text(encoding="utf-8") for file in files})


def json_digest(content: object) -> str:
    """Return the sha256 of `content` as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _git(*arguments: str) -> str | None:
    """Return what git prints, or None where there is no git, no checkout or no commit."""
    try:
        git = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return git.stdout.strip() if git.returncode == 0 else None


class _Entry(BaseModel):
    path: Path
    md5: str | None = None
    size: int | None = None
    nfiles: int | None = None


def _lies_there(entry: _Entry) -> bool:
    if entry.path.is_dir():
        sizes = [file.stat().st_size for file in entry.path.rglob("*") if file.is_file()]
        return (entry.nfiles, entry.size) == (len(sizes), sum(sizes))
    if not entry.path.exists():
        return False
    with entry.path.open("rb") as content:
        return hashlib.file_digest(content, "md5").hexdigest() == entry.md5


class _LockedStage(BaseModel):
    outs: list[_Entry] = []


def _locked_stages(lock: Path) -> dict[str, _LockedStage]:
    """Return what dvc.lock says of each stage; nothing where there is no dvc.lock."""
    if not lock.exists():
        return {}
    try:
        stages = YAML(typ="safe", pure=True).load(lock.read_text(encoding="utf-8"))["stages"]
        return TypeAdapter(dict[str, _LockedStage]).validate_python(stages)
    except (YAMLError, ValueError, KeyError, TypeError):
        raise UserError(f"{lock} cannot be read: restore it from git, or remove it and run `dvc repro`") from None
