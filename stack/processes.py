"""Starts servers that outlive the command that started them, and stops them in a later command."""

import json
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from diffusion_core.documents import read_json
from diffusion_core.files import write_whole
from diffusion_core.supervision.worker import runs_still
from stack.home import StackError

START_SECONDS = 120.0


@dataclass(frozen=True)
class Service:
    """A server to start.

    Attributes:
        name: name in messages and of the log file.
        command: program and arguments, which every user of the machine can read.
        environment: all variables, which other users cannot read.
        folder: working directory.
        is_ready: returns whether the server answers.
        user: the user to run as; None for the current one.
        stop_signal: signal for a graceful stop.
        stop_seconds: seconds from that signal to KILL.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    is_ready: Callable[[], bool]
    user: str | None = None
    stop_signal: int = signal.SIGTERM
    stop_seconds: float = 20.0


@dataclass(frozen=True)
class Started:
    """A started server.

    Its command distinguishes its process from a later one with the same id. The start time cannot, because clocks may
    be corrected.

    Attributes:
        name: see `Service`.
        pid: id of the process.
        command: see `Service`.
        stop_signal: see `Service`.
        stop_seconds: see `Service`.
    """

    name: str
    pid: int
    command: Sequence[str]
    stop_signal: int
    stop_seconds: float

    def lives(self) -> bool:
        """Return whether the server is running."""
        try:
            process = psutil.Process(self.pid)
        except psutil.NoSuchProcess:
            return False
        return runs_still(process) and list(process.cmdline()) == list(self.command)

    def stop(self) -> None:
        """Stop the server and its descendants; do nothing if it has ended already."""
        if not self.lives():
            return
        process = psutil.Process(self.pid)
        family = process.children(recursive=True)
        with suppress(psutil.NoSuchProcess):
            process.send_signal(self.stop_signal)
            family += process.children(recursive=True)
        _wait_for([process], self.stop_seconds)
        for member in [process, *family]:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        _wait_for([process, *family], self.stop_seconds)


def stop(processes: Sequence[psutil.Process], seconds: float) -> None:
    """Stop processes by TERM, and by KILL after `seconds`."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _wait_for(processes, seconds)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _wait_for(processes: Sequence[psutil.Process], seconds: float) -> None:
    """Wait at most `seconds` until no process is running; zombies do not count."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(runs_still(each) for each in processes):
        time.sleep(0.05)


def start(service: Service, log: Path) -> Started:
    """Start a server in a new session, with its output appended to `log`."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            service.command,
            env=service.environment,
            cwd=service.folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=service.user,
            extra_groups=None if service.user is None else [],
        )
    return Started(service.name, process.pid, service.command, service.stop_signal, service.stop_seconds)


def wait_until_ready(service: Service, started: Started, log: Path) -> None:
    """Wait until a server answers.

    Raises:
        StackError: the server has ended, or does not answer in time; the message names its log.
    """
    deadline = time.monotonic() + START_SECONDS
    while not service.is_ready():
        if not started.lives():
            raise StackError(f"{service.name} ended by itself: {log} says why")
        if time.monotonic() > deadline:
            raise StackError(f"{service.name} did not answer within {START_SECONDS:.0f} seconds: {log} says why")
        time.sleep(0.2)


def read_started(file: Path) -> dict[str, Started]:
    """Return the running servers by name, in the order of their start.

    Raises:
        StackError: the file is damaged.
    """
    if not file.exists():
        return {}
    try:
        found = [Started(**content) for content in read_json(file)]
    except (ValueError, TypeError):
        raise StackError(
            f"{file} is damaged: stop by hand what `ps` shows of the stack, remove the file and start again"
        ) from None
    return {each.name: each for each in found if each.lives()}


def write_started(file: Path, started: Mapping[str, Started]) -> None:
    """Write the started servers to `file`."""
    write_whole(file, json.dumps([asdict(each) for each in started.values()], indent=1) + "\n")
