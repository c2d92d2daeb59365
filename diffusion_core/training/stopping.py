"""A polite end: the first TERM or INT lets the step finish, so that its checkpoint can be written."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from diffusion_core.errors import UserError
from diffusion_core.runtime.distributed import Ranks
from diffusion_core.training.step import OutOfMemory
from diffusion_core.training.trainer import Trainer, TrainingDiverged


class StopRequest:
    """Whether a signal has asked to stop, and which."""

    def __init__(self) -> None:
        self.signal: int | None = None


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Yield a request that TERM or INT fills in while the block runs; the handlers before it come back afterwards."""
    request = StopRequest()

    def ask(number: int, _: FrameType | None) -> None:
        request.signal = number

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turn what the trainer raises, and the user can mend, into a `UserError`."""
    try:
        yield
    except (TrainingDiverged, OutOfMemory) as error:
        raise UserError(str(error)) from None


def asked_to_stop(request: StopRequest, ranks: Ranks) -> int | None:
    """Return the exit code, as a shell counts it, where a signal has reached any of the processes; all ask at once."""
    signal = ranks.all_reduce_max(request.signal or 0)
    return 128 + signal if signal else None


def run_worker(trainer: Trainer, ranks: Ranks) -> None:
    """Take all steps that are left.

    Raises:
        SystemExit: a signal asked one of the processes to stop.
        UserError: training has diverged, or memory is too small.
    """
    with stop_on_signal() as request, translate_errors():
        for _ in trainer.steps():
            code = asked_to_stop(request, ranks)
            if code is not None:
                raise SystemExit(code)
