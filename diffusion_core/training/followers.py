"""The part of a training in which the processes after the first take part: they start alike and stop together."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import safetensors.torch

from diffusion_core.errors import UserError
from diffusion_core.training.checkpoint import Checkpoint
from diffusion_core.training.distributed import Ranks
from diffusion_core.training.gradient import OutOfMemory
from diffusion_core.training.stopping import StopRequest, stop_on_signal
from diffusion_core.training.trainer import Trainer, TrainingDiverged


def shared_checkpoint(checkpoint: Checkpoint | None, ranks: Ranks) -> Checkpoint | None:
    """Return the first process's checkpoint on all of them, which may see other disks."""
    if ranks.count == 1:
        return checkpoint
    state: dict[str, Any] | None = None if checkpoint is None else {"step": checkpoint.step, **checkpoint.state}
    received = json.loads(ranks.broadcast(json.dumps(state).encode()))
    if received is None:
        return None
    own = {} if checkpoint is None else checkpoint.tensors
    tensors = {}
    for name in json.loads(ranks.broadcast(json.dumps([*own]).encode())):
        content = safetensors.torch.save(own[name]) if ranks.first else b""
        tensors[name] = safetensors.torch.load(ranks.broadcast(content))
    return Checkpoint(received.pop("step"), tensors, received)


def demand_alike(what: str, ranks: Ranks) -> None:
    """Compare a text with the first process's.

    Raises:
        UserError: it is another, so the processes would train different things.
    """
    if ranks.broadcast(what.encode()).decode() != what:
        raise UserError(
            f"process {ranks.index} has other data, parameters or precision than the first: bring data/prepared and"
            " params.yaml of all machines to one state, and set DIFFUSION_PRECISION where their processors differ"
        )


@contextmanager
def mistakes() -> Iterator[None]:
    """Turn what the trainer raises, and the user can mend, into a `UserError`."""
    try:
        yield
    except (TrainingDiverged, OutOfMemory) as error:
        raise UserError(str(error)) from None


def asked_to_stop(request: StopRequest, ranks: Ranks) -> int | None:
    """Return the exit code, as a shell counts it, where a signal has reached any of the processes; all ask at once."""
    signal = ranks.most(request.signal or 0)
    return 128 + signal if signal else None


def follow(trainer: Trainer, ranks: Ranks) -> None:
    """Take all steps that are left.

    Raises:
        SystemExit: a signal asked one of the processes to stop.
        UserError: training has diverged, or memory is too small.
    """
    with stop_on_signal() as request, mistakes():
        for _ in trainer.steps():
            code = asked_to_stop(request, ranks)
            if code is not None:
                raise SystemExit(code)
