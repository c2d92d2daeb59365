"""Checkpoints that survive a crash at any moment.

A checkpoint is a folder `step-N` of safetensors files, `state.json` and, written last, `manifest.json` with the size
and sha256 of each. It is written under a temporary name, flushed to disk and renamed; then old checkpoints are removed.
A damaged checkpoint is moved aside, and the previous one is used. Folders are renamed before they are removed, so that
no kill leaves one that looks damaged.

The checkpoints of a finished training stay, because DVC records a model after the stage, and deletes one that it has
not recorded. The next training of something else removes them.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors.torch import load_file
from torch import Tensor

from diffusion_core.errors import UserError
from diffusion_core.files import Locked, discard, exclusive_lock, flush, naming, sha256_of, sweep_discarded, write_whole
from diffusion_core.lineage.tensors import save_tensors
from diffusion_core.runtime.distributed import Ranks

logger = logging.getLogger(__name__)

# If the newest is damaged, one more is left.
KEEP = 2
LOCK = ".lock"
FINISHED = "finished"


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` steps.

    Attributes:
        step: steps done.
        tensors: tensors by file and name.
        state: the caller's JSON values.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


@contextmanager
def only_training(folder: Path) -> Iterator[None]:
    """Lock `folder` against other training processes while the block runs.

    Raises:
        UserError: another training process has the lock.
    """
    try:
        with exclusive_lock(folder / LOCK):
            yield
    except Locked:
        raise UserError(
            f"another training of the same data and parameters keeps its checkpoints in {folder}: wait until it ends,"
            " or stop it"
        ) from None


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint to `folder`, remove all but the newest two, and return its path."""
    target = folder / f"step-{checkpoint.step:09d}"
    if target.exists() and _problem(target) is None:
        # A valid copy exists; replacing it would leave a moment without one.
        return target
    temporary = folder / f"{target.name}.tmp-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for name, tensors in checkpoint.tensors.items():
            save_tensors(tensors, temporary / f"{name}.safetensors")
        _write_json(temporary / "state.json", {"step": checkpoint.step, **checkpoint.state})
        files = {file.name: _fingerprint(file) for file in sorted(temporary.iterdir())}
        _write_json(temporary / "manifest.json", {"files": files})
        for file in temporary.iterdir():
            flush(file)
        flush(temporary)
        if target.exists():
            discard(target)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    flush(folder)
    for old in _checkpoints(folder)[KEEP:]:
        discard(old)
    return target


def mark_finished(folder: Path) -> None:
    """Note in a folder of checkpoints that its training is finished, so that the next one may remove it."""
    write_whole(folder / FINISHED, "")


def finished_folders(root: Path) -> set[Path]:
    """Return the folders of finished trainings in `root`."""
    sweep_discarded(root)
    return {marker.parent for marker in root.glob(f"*/{FINISHED}")}


def remove_finished(folder: Path) -> None:
    """Remove the folder of a finished training, unless a process uses it."""
    with suppress(Locked), exclusive_lock(folder / LOCK):
        discard(folder)


def newest_step(folder: Path) -> int | None:
    """Return the step of the newest checkpoint in `folder`, damaged or not, or None if there is none."""
    return next((int(path.name[5:]) for path in _checkpoints(folder)), None)


def load_newest(folder: Path) -> Checkpoint | None:
    """Return the newest valid checkpoint in `folder`, or None if there has never been one.

    Raises:
        UserError: there are checkpoints, and all are damaged.
    """
    sweep_discarded(folder)
    leftovers = [file for file in folder.glob("step-*.tmp-*") if file.is_dir()]
    for leftover in leftovers:
        shutil.rmtree(leftover)
    damaged = [path for path in folder.glob("step-*.damaged*") if path.is_dir()]
    for path in _checkpoints(folder):
        problem = _problem(path)
        if problem is None:
            return _load(path)
        aside = path.with_name(f"{path.name}.damaged-{len(damaged)}")
        path.rename(aside)
        damaged.append(aside)
        logger.warning("checkpoint %s is damaged (%s): moved aside to %s", path, problem, aside.name)
    if damaged:
        raise UserError(f"every checkpoint below {folder} is damaged: restore one from a backup, or remove that folder")
    return None


def shared_checkpoint(checkpoint: Checkpoint | None, ranks: Ranks) -> Checkpoint | None:
    """Return the main rank's checkpoint on all ranks, which may have other disks."""
    if ranks.count == 1:
        return checkpoint
    state: dict[str, Any] | None = None if checkpoint is None else {"step": checkpoint.step, **checkpoint.state}
    received = json.loads(ranks.broadcast(json.dumps(state).encode()))
    if received is None:
        return None
    own = {} if checkpoint is None else checkpoint.tensors
    tensors = {}
    for name in json.loads(ranks.broadcast(json.dumps([*own]).encode())):
        content = safetensors.torch.save(own[name]) if ranks.is_main else b""
        tensors[name] = safetensors.torch.load(ranks.broadcast(content))
    return Checkpoint(received.pop("step"), tensors, received)


def _checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint folders, newest first."""
    return sorted((path for path in folder.glob("step-*") if path.name[5:].isdigit()), reverse=True)


def _problem(path: Path) -> str | None:
    """Return why a checkpoint is damaged, or None if it is valid."""
    try:
        files = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["files"]
        for name, expected in files.items():
            if _fingerprint(path / name) != expected:
                return f"{name} differs from its manifest"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"manifest.json: {error}"
    return None


def _load(path: Path) -> Checkpoint:
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
    return Checkpoint(state.pop("step"), tensors, state)


def _fingerprint(file: Path) -> dict[str, Any]:
    return {"size": file.stat().st_size, "sha256": sha256_of(file)}


def _write_json(file: Path, content: dict[str, Any]) -> None:
    with naming(file):
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
