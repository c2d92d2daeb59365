"""One machine's schedule, until it is stopped: Prefect's server, MLflow's pages, and the process that runs the nights.

`python -m flows.serve` starts the three, watches them, and on Ctrl-C or TERM ends them and nothing else.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from flows.child import GRACE_SECONDS, stop_group

LOGS = Path(".cache")
HOST = "127.0.0.1"
START_SECONDS = 120.0
STOP_SECONDS = 10.0


class CannotServe(Exception):
    """What is in the way, in one sentence."""


@dataclass(frozen=True)
class Server:
    """A server to be started. It ends with exit code 0 where it turns out that nobody needs it.

    Attributes:
        name: for people, and of the log file.
        module: what Python runs, with its arguments.
        port: where it listens.
        health: the path that answers when it is ready.
    """

    name: str
    module: Sequence[str]
    port: int
    health: str

    @property
    def page(self) -> str:
        """The address that people open."""
        return f"http://{HOST}:{self.port}"


PREFECT = Server("prefect", ("prefect", "server", "start", "--host", HOST, "--port", "4200"), 4200, "/api/health")
MLFLOW = Server("mlflow", ("diffusion_core.registry.server", HOST, "5000"), 5000, "/health")
SCHEDULE = ("flows.schedule",)


@contextmanager
def running(server: Server) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server for the block; it answers when the block begins, and is gone with all its children afterwards.

    Raises:
        CannotServe: its port is taken, or it does not start; the message names its log.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, server.port))
        except OSError:
            raise CannotServe(f"port {server.port} for {server.name} is taken: stop what listens there") from None
    LOGS.mkdir(exist_ok=True)
    log = LOGS / f"{server.name}-server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *server.module],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_ready(server, process, log)
        yield process
    finally:
        stop_group(process, STOP_SECONDS)


@contextmanager
def scheduling() -> Iterator[subprocess.Popen[bytes]]:
    """Run the schedule for the block; a flow run that is on its way when the block ends is stopped in good order."""
    process = subprocess.Popen(
        [sys.executable, "-m", *SCHEDULE],
        env={**os.environ, "PREFECT_API_URL": PREFECT.page + "/api"},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _stop_flow_runs(process)
        # Prefect's runner leaves in good order on INT and not on TERM.
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        stop_group(process, STOP_SECONDS)


def _stop_flow_runs(runner: subprocess.Popen[bytes]) -> None:
    """End the runner's flow runs, which the runner itself would kill: each gives its stage time to save its work."""
    with suppress(psutil.NoSuchProcess):
        flow_runs = psutil.Process(runner.pid).children()
        for flow_run in flow_runs:
            flow_run.terminate()
        psutil.wait_procs(flow_runs, GRACE_SECONDS + STOP_SECONDS)


def watch(processes: dict[str, subprocess.Popen[bytes]]) -> None:
    """Wait until one of the processes ends with another exit code than 0.

    Raises:
        CannotServe: always; it names the process.
    """
    while True:
        for name, process in processes.items():
            if process.poll():
                raise CannotServe(f"the {name} ended with exit code {process.returncode}")
        time.sleep(1.0)


def _wait_until_ready(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        code = process.poll()
        if code == 0:
            print(f"{server.name}: {log.read_text(errors='replace').strip()}")
            return
        if code is not None:
            raise CannotServe(f"the {server.name} server ended with exit code {code}: {log} says why")
        try:
            urllib.request.urlopen(server.page + server.health, timeout=1).close()
        except OSError:
            time.sleep(0.2)
        else:
            print(f"{server.name}: {server.page}")
            return
    raise CannotServe(f"the {server.name} server did not answer within {START_SECONDS:.0f} seconds: {log} says why")


def main() -> None:
    """Serve until Ctrl-C or TERM; exit code 2 if something cannot be started or ends by itself."""
    signal.signal(signal.SIGTERM, _leave)
    try:
        with ExitStack() as running_now:
            processes = {
                f"{server.name} server": running_now.enter_context(running(server)) for server in (PREFECT, MLFLOW)
            }
            processes["schedule"] = running_now.enter_context(scheduling())
            watch(processes)
    except CannotServe as trouble:
        print(f"error: {trouble}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _leave(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
