"""The provenance of a result: commit, data and flow run. Works without git, DVC and Prefect."""

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from diffusion_core.documents import read_yaml
from diffusion_core.errors import UserError
from diffusion_core.files import sha256_of

DVC_LOCK = Path("dvc.lock")
PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class GitState:
    """The state of the checkout; both are None outside a checkout.

    Attributes:
        commit: hash of the commit.
        dirty: whether tracked files differ from the commit, or the package has untracked files.
    """

    commit: str | None
    dirty: bool | None


def git_state() -> GitState:
    """Return the commit, and whether tracked files differ from it or the package has untracked files.

    Changes of dvc.lock do not count: every stage rewrites it, and the md5 of the data is recorded separately.
    """
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", f":(exclude){DVC_LOCK}")
    unknown = _git("ls-files", "--others", "--exclude-standard", "--", ":/diffusion_core")
    return GitState(commit, None if changes is None else bool(changes or unknown))


def dvc_hashes(lock: Path = DVC_LOCK) -> dict[str, str]:
    """Return the md5 in dvc.lock of each output, with DVC's suffix `.dir` for a folder.

    Outputs that differ from dvc.lock are omitted, because stages run without DVC do not update it. Folders are compared
    by number and size of their files, because hashing all data again would be slow.

    Raises:
        UserError: dvc.lock cannot be read.
    """
    outs = [entry for stage in locked_stages(lock).values() for entry in stage.outs]
    return {entry.path.as_posix(): entry.md5 for entry in outs if entry.md5 is not None and _lies_there(entry)}


def dvc_tags(within: str = "") -> dict[str, str]:
    """Return the hashes of outputs with paths that begin with `within`, as tags `dvc.<path>`."""
    return {f"dvc.{path}": md5 for path, md5 in dvc_hashes().items() if path.startswith(within)}


# Tag of runs and versions.
FLOW_RUN = "prefect_flow_run"


def flow_run_id() -> str | None:
    """Return the id of the Prefect flow run that started this process, or None."""
    return os.environ.get("PREFECT__FLOW_RUN_ID")


def provenance_tags() -> dict[str, str]:
    """Return the known tags of an MLflow run: `git_commit`, `git_dirty` and `prefect_flow_run`."""
    git = git_state()
    return known_tags({"git_commit": git.commit, "git_dirty": git.dirty, FLOW_RUN: flow_run_id()})


def known_tags(tags: Mapping[str, str | bool | None]) -> dict[str, str]:
    """Return tags as strings, without those that are None; booleans become `true` and `false`."""
    return {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in tags.items()
        if value is not None
    }


def code_digest(*names: str) -> str:
    """Return the sha256 of the source files of these modules and sub-packages of this package."""
    return json_digest(
        {file.relative_to(PACKAGE).as_posix(): file.read_text(encoding="utf-8") for file in _code(names)}
    )


def code_files(*names: str) -> dict[str, str]:
    """Return the sha256 of each source file of these modules and sub-packages of this package, by path."""
    return {file.relative_to(PACKAGE).as_posix(): sha256_of(file) for file in _code(names)}


def _code(names: Sequence[str]) -> list[Path]:
    places = [PACKAGE / name for name in names]
    return [file for place in places for file in (place.rglob("*.py") if place.is_dir() else [place])]


def json_digest(content: object) -> str:
    """Return the sha256 of `content` as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _git(*arguments: str) -> str | None:
    """Return the output of git, or None without git, a checkout or a commit."""
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


class LockedStage(BaseModel):
    """A stage in dvc.lock.

    Attributes:
        outs: its outputs.
        params: the parameters with which it ran, by file.
    """

    outs: list[_Entry] = []
    params: dict[str, dict[str, Any]] = {}


def locked_stages(lock: Path) -> dict[str, LockedStage]:
    """Return the stages in dvc.lock by name; empty if there is no dvc.lock."""
    if not lock.exists():
        return {}
    try:
        stages = read_yaml(lock)["stages"]
        return TypeAdapter(dict[str, LockedStage]).validate_python(stages)
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{lock} cannot be read: restore it from git, or remove it and run `dvc repro`") from None
