"""Servers that outlive the command which started them, and are stopped by another."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from flows.child import GRACE_SECONDS, end_children, end_group
from flows.stack.trouble import StackTrouble

STOP_SECONDS = 20.0
START_SECONDS = 120.0


@dataclass(frozen=True)
class Service:
    """A server to be started.

    Attributes:
        name: for people, and of the log file.
        command: program and arguments, which every user of the machine can read.
        environment: all of its variables, which other users cannot.
        folder: where it runs.
        is_ready: whether it answers.
        user: whom it runs as, if not as who starts it.
        stop_signal: what ends it in good order.
        runs_flows: it has flow runs as children, and each is given time to save its work.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    is_ready: Callable[[], bool]
    user: str | None = None
    stop_signal: int = signal.SIGTERM
    runs_flows: bool = False


@dataclass(frozen=True)
class Started:
    """A server that was started: a process is told from a later one with the same number by its birth."""

    name: str
    pid: int
    born: float
    stop_signal: int
    runs_flows: bool

    def lives(self) -> bool:
        """Whether it runs."""
        try:
            process = psutil.Process(self.pid)
            return process.create_time() == self.born and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def stop(self) -> None:
        """End it and all that it has started; nothing is done where it has ended already."""
        if not self.lives():
            return
        if self.runs_flows:
            end_children(self.pid, GRACE_SECONDS + STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.kill(self.pid, self.stop_signal)
        deadline = time.monotonic() + STOP_SECONDS
        while self.lives() and time.monotonic() < deadline:
            time.sleep(0.1)
        end_group(self.pid, 0.0)


def start(service: Service, log: Path) -> Started:
    """Start a server at the head of a session of its own."""
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
    born = psutil.Process(process.pid).create_time()
    return Started(service.name, process.pid, born, service.stop_signal, service.runs_flows)


def wait_until_ready(service: Service, started: Started, log: Path) -> None:
    """Wait until a server answers.

    Raises:
        StackTrouble: it has ended, or does not answer in time; the message names its log.
    """
    deadline = time.monotonic() + START_SECONDS
    while not service.is_ready():
        if not started.lives():
            raise StackTrouble(f"{service.name} ended by itself: {log} says why")
        if time.monotonic() > deadline:
            raise StackTrouble(f"{service.name} did not answer within {START_SECONDS:.0f} seconds: {log} says why")
        time.sleep(0.2)


def read_started(file: Path) -> dict[str, Started]:
    """Return the servers that were started and still run, in the order of their start."""
    if not file.exists():
        return {}
    found = [Started(**content) for content in json.loads(file.read_text(encoding="utf-8"))]
    return {each.name: each for each in found if each.lives()}


def write_started(file: Path, started: Mapping[str, Started]) -> None:
    """Write down who was started."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps([asdict(each) for each in started.values()], indent=1) + "\n", encoding="utf-8")
    temporary.replace(file)
