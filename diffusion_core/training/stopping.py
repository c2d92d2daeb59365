"""A polite end: the first TERM or INT lets the step finish, so that its checkpoint can be written."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


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
