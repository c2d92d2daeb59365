"""A child process in a group of its own, which never outlives the call that started it."""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import IO, Any

import psutil

# Prefect kills a cancelled flow 30 seconds after its TERM.
GRACE_SECONDS = 20.0


def run_child(command: Sequence[str], environment: Mapping[str, str], take: Callable[[bytes], None]) -> int:
    """Run `command` to its end and return its exit code, which is negative for a signal.

    Whatever ends this call early, a cancelled flow for one, reaches the whole group as TERM: the command, what it has
    started, and what that has started. Whoever is left after `GRACE_SECONDS` is killed.

    Args:
        command: program and arguments.
        environment: all variables of the child.
        take: called with each piece of standard output and standard error, in their order.
    """
    process: subprocess.Popen[bytes] | None = None
    try:
        with signals_held():
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        for output in _output(process):
            take(output)
        return process.wait()
    except BaseException:
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            for output in _output(process, time.monotonic() + GRACE_SECONDS):
                take(output)
        raise
    finally:
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            _pipe(process).close()


@contextmanager
def started(command: Sequence[str], seconds: float, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` for the block at the head of a group, of which nobody is left afterwards.

    Args:
        command: program and arguments.
        seconds: how long the group has after TERM.
        options: more arguments of `Popen`.
    """
    process: subprocess.Popen[bytes] | None = None
    try:
        with signals_held():
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, **options)
        yield process
    finally:
        if process is not None:
            with signals_held():
                end_group(process.pid, seconds)
                process.wait()


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold back TERM and Ctrl-C until the block has ended.

    So no process is started without its owner knowing of it, and whoever presses Ctrl-C twice breaks off no stopping.
    """
    if threading.current_thread() is not threading.main_thread():
        # Signals reach the main thread alone.
        yield
        return
    held: list[int] = []
    before = {
        each: signal.signal(each, lambda number, _: held.append(number)) for each in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        for number in held:
            signal.raise_signal(number)


def leave(number: int, _: FrameType | None) -> None:
    """Leave on a signal as a shell would count it, so that whatever was started is stopped on the way."""
    sys.exit(128 + number)


def end_group(leader: int, seconds: float) -> None:
    """End all of the group that a process leads or led: by TERM, and whoever is left after `seconds` by KILL."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and _lives(leader):
        time.sleep(0.1)
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _lives(group: int) -> bool:
    """Whether anybody of a process group is left; who is dead and only waits to be counted is not."""
    for process in psutil.process_iter(["status"]):
        with suppress(ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                return True
    return False


def _output(process: subprocess.Popen[bytes], deadline: float = float("inf")) -> Iterator[bytes]:
    """Yield output until nobody can write any more, or until the deadline.

    Closed output is how the end of the last member of the group is seen; whoever holds it open when the command has
    ended has `GRACE_SECONDS` left.
    """
    pipe = _pipe(process).fileno()
    while time.monotonic() < deadline:
        if process.poll() is not None:
            deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        readable, _, _ = select.select([pipe], [], [], 0.5)
        if readable:
            output = os.read(pipe, 65536)
            if not output:
                return
            yield output


def _pipe(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdout is not None
    return process.stdout
