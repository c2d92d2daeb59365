"""Graceful stop: after TERM or INT, training ends after the current step, so that it can write a checkpoint."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from diffusion_core.errors import UserError
from diffusion_core.runtime.distributed import Ranks
from diffusion_core.training.divergence import TrainingDiverged
from diffusion_core.training.step import OutOfMemory
from diffusion_core.training.trainer import Trainer


class Stopped(Exception):
    """TERM or INT has arrived.

    Attributes:
        signal: its number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


class StopRequest:
    """A request to stop.

    Attributes:
        signal: number of the last TERM or INT, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def check(self, *_: object) -> None:
        """Raise `Stopped` after TERM or INT; a module can call this before each evaluation, as a hook."""
        if self.signal is not None:
            raise Stopped(self.signal)


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Yield a request that records TERM and INT while the block runs; restore the previous handlers afterwards."""
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
    """Raise `TrainingDiverged` and `OutOfMemory` as a `UserError`."""
    try:
        yield
    except (TrainingDiverged, OutOfMemory) as error:
        raise UserError(str(error)) from None


def asked_to_stop(request: StopRequest, ranks: Ranks, is_time_up: bool = False) -> int | None:
    """Return the exit code if the processes end after this step, else None; all processes call it together.

    It is 128 + signal if any process got one, and 0 if the time of one is up.
    """
    # No signal that is recorded has the number 1.
    agreed = ranks.all_reduce_max(request.signal or int(is_time_up))
    return 128 + agreed if agreed > 1 else 0 if agreed else None


def run_worker(trainer: Trainer, ranks: Ranks) -> None:
    """Run the remaining steps of a worker rank, until the main rank's time is up.

    Raises:
        SystemExit: one of the processes got TERM or INT.
        UserError: training has diverged, or memory is too small.
    """
    with stop_on_signal() as request, translate_errors():
        for _ in trainer.steps():
            code = asked_to_stop(request, ranks)
            if code == 0:
                return
            if code is not None:
                raise SystemExit(code)
