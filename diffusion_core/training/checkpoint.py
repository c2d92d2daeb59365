"""Checkpoints that survive a crash at any moment.

A checkpoint is a folder of safetensors files, `state.json` and, written last, `manifest.json` with the size and sha256
of each. It is written under a temporary name, read back and compared, flushed to disk and renamed; then old checkpoints
are removed. A damaged checkpoint is set aside, and the previous one is used.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffusion_core.documents import read_json
from diffusion_core.errors import UserError
from diffusion_core.files import discard, flush, sweep_discarded
from diffusion_core.lineage.checkpoints import (
    KEEP,
    MANIFEST,
    MILESTONE,
    checkpoints,
    damage_of,
    damaged,
    fingerprint,
    problem,
    read_twice,
    remove_old,
    set_aside,
    step_of,
    write_json,
)
from diffusion_core.lineage.tensors import read_back, save_tensors
from diffusion_core.parallel import in_parallel
from diffusion_core.runtime.distributed import Ranks

logger = logging.getLogger(__name__)

# Files written at once: one is read back and hashed while the other is written.
WRITERS = 2


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` steps.

    Attributes:
        step: steps done.
        tensors: tensors by file and name.
        state: the caller's JSON values.
        is_milestone: whether the checkpoint stays when newer ones are saved.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    is_milestone: bool = False


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int = KEEP) -> Path:
    """Write a checkpoint to `folder`, remove older ones, and return its path.

    The newest `keep`, the milestones, and the later ones of a longer training stay.

    Raises:
        OSError: the disk is full or refuses, or gives back other bytes than were written.
    """
    target = folder / f"step-{checkpoint.step:09d}"
    if target.exists() and problem(target) is None:
        # A valid copy exists; replacing it would leave a moment without one.
        return target
    temporary = folder / f"{target.name}.tmp-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        # The largest first, so that no writer is left alone with it.
        parts = sorted(checkpoint.tensors.items(), key=lambda part: -sum(each.nbytes for each in part[1].values()))
        written = dict(in_parallel(lambda part: _write_part(temporary, *part), parts, WRITERS))
        written["state.json"] = write_json(temporary / "state.json", {"step": checkpoint.step, **checkpoint.state})
        if checkpoint.is_milestone:
            (temporary / MILESTONE).touch()
        write_json(temporary / MANIFEST, {"files": written})
        flush(temporary)
        if target.exists():
            discard(target)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    flush(folder)
    remove_old(folder, keep, up_to=checkpoint.step)
    return target


def load_newest(folder: Path, up_to: int | None = None) -> Checkpoint | None:
    """Return the newest valid checkpoint in `folder`, or None if there has never been one.

    Args:
        folder: the folder.
        up_to: pass over those after this step, as a longer training has left them.

    Raises:
        UserError: there are checkpoints, and all are damaged; or one cannot be read.
    """
    sweep_discarded(folder)
    leftovers = [file for file in folder.glob("step-*.tmp-*") if file.is_dir()]
    for leftover in leftovers:
        shutil.rmtree(leftover)
    for path in checkpoints(folder):
        if up_to is not None and step_of(path) > up_to:
            continue
        reason = problem(path)
        if reason is None:
            try:
                return read_twice(partial(_load, path))
            except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
                reason = damage_of(path, error)
        aside = set_aside(path)
        logger.warning("checkpoint %s is damaged (%s): moved aside to %s", path, reason, aside.name)
    if damaged(folder):
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


def _load(path: Path) -> Checkpoint:
    state = read_json(path / "state.json")
    tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
    return Checkpoint(state.pop("step"), tensors, state)


def _write_part(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Write a file of tensors, compare it with them, and return its name and fingerprint."""
    file = folder / f"{name}.safetensors"
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_tensors(tensors, file)
    flush(file)
    return file.name, fingerprint(file, read_back(tensors, file))
