"""Child processes in their own process groups, which never outlive the call that started them."""

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

from diffusion_core.supervision.tied import tied

# Less than the 30 seconds after which Prefect kills a cancelled flow.
GRACE_SECONDS = 20.0


class TimeIsUp(Exception):
    """A command did not end in its time, and was stopped."""


def run_child(
    command: Sequence[str],
    environment: Mapping[str, str],
    take: Callable[[bytes], None],
    seconds: float = float("inf"),
) -> int:
    """Run `command` until it ends, and return its exit code, negative for a signal.

    If this process is killed, Linux lets all that the command has started end with it.

    If an exception ends this call early, for example in a cancelled flow, the whole process group gets TERM: the
    command and all its descendants. After `GRACE_SECONDS` the rest are killed. Until then, further signals wait.

    Args:
        command: program and arguments.
        environment: all environment variables of the child.
        take: called with each piece of standard output and standard error, in order.
        seconds: the time that the command may take.

    Raises:
        TimeIsUp: it has not ended by then.
    """
    deadline = time.monotonic() + seconds
    process: subprocess.Popen[bytes] | None = None
    try:
        with signals_held():
            process = subprocess.Popen(
                tied(command),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        for output in _output(process, deadline):
            take(output)
        if process.poll() is None and time.monotonic() >= deadline:
            raise TimeIsUp
        return process.wait()
    except BaseException:
        if process is not None:
            # A second signal does not cut the grace short.
            with signals_held():
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                for output in _output(process, time.monotonic() + GRACE_SECONDS):
                    take(output)
        raise
    finally:
        if process is not None:
            with signals_held():
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                _pipe(process).close()


# Signals of the system: it kills for want of memory, and allocators that get none crash.
FATAL = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)


def killed(code: int) -> str | None:
    """Return what to say of an exit code by a fatal signal, -signal or a shell's 128 + signal, or None for another."""
    number = -code if code < 0 else code - 128
    if number not in FATAL:
        return None
    return (
        f"was ended by {signal.Signals(number).name}, most likely for want of memory: free some; to train, raise"
        " train.accumulate or lower train.batch_size; to sample, lower DIFFUSION_SAMPLE_BATCH_SIZE"
    )


@contextmanager
def started(command: Sequence[str], seconds: float, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` as leader of a new process group during the block, and stop the whole group afterwards.

    Args:
        command: program and arguments.
        seconds: seconds from TERM to KILL.
        **options: more arguments of `Popen`.
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
    """Delay TERM and INT until the block has ended.

    A signal can then neither arrive between starting a process and storing it, nor interrupt stopping it.
    """
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread receives signals.
        yield
        return
    received: list[int] = []
    before = {
        each: signal.signal(each, lambda number, _: received.append(number)) for each in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        for number in received:
            signal.raise_signal(number)


def leave(number: int, _: FrameType | None) -> None:
    """Handle a signal by raising `SystemExit` with 128 + signal, so that context managers stop their processes."""
    sys.exit(128 + number)


def end_group(leader: int, seconds: float) -> None:
    """End all processes of the group of `leader`: by TERM, and by KILL after `seconds`."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and _lives(leader):
        time.sleep(0.1)
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _lives(group: int) -> bool:
    """Return whether a process of a group has not ended; a zombie has ended."""
    for process in psutil.process_iter(["status"]):
        with suppress(ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                return True
    return False


def _output(process: subprocess.Popen[bytes], deadline: float = float("inf")) -> Iterator[bytes]:
    """Yield output until all processes have closed it, or until the deadline.

    Output closes when the last process of the group ends. After the command has ended, the others have `GRACE_SECONDS`.
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
