"""Serves the schedule of one machine: Prefect's server, MLflow's pages, and the process of the nightly runs.

`python -m stack.serve` starts and watches these processes, and stops them on Ctrl-C or TERM. If the user's settings
name a Prefect server, that server is used and none is started.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from dotenv import dotenv_values

from diffusion_core.supervision.child import GRACE_SECONDS, leave, signals_held, started
from diffusion_core.supervision.worker import stop_flow_runs

LOGS = Path(".cache")
HOST = "127.0.0.1"
START_SECONDS = 120.0
STOP_SECONDS = 10.0
LAST_PORT = 65535


class CannotServe(Exception):
    """Serving is impossible; the message says why."""


@dataclass(frozen=True)
class Server:
    """A server to start.

    Attributes:
        name: name in messages and of the log file.
        module: Python module and arguments.
        port: port of the server.
        health: path that answers when the server is ready.
        is_optional: whether the server may exit with code 0 because it is not needed.
    """

    name: str
    module: Sequence[str]
    port: int
    health: str
    is_optional: bool = False

    @property
    def page(self) -> str:
        """The address of the server's pages."""
        return f"http://{HOST}:{self.port}"


SCHEDULE = ("flows.schedule",)
PAGE = "DIFFUSION_TRACKING_PAGE"


def prefect(port: int) -> Server:
    """Return Prefect's server on a port."""
    return Server("prefect", ("prefect", "server", "start", "--host", HOST, "--port", str(port)), port, "/api/health")


def mlflow(port: int) -> Server:
    """Return MLflow's pages on a port."""
    return Server("mlflow", ("diffusion_core.registry.server", HOST, str(port)), port, "/health", is_optional=True)


@contextmanager
def running(server: Server) -> Iterator[subprocess.Popen[bytes] | None]:
    """Run a server for the block, and stop it with its children afterwards.

    Yields its process when it answers, or None if the server is not needed.

    Raises:
        CannotServe: its port is taken, or it does not start; the message names its log.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, server.port))
        except OSError:
            raise CannotServe(
                f"port {server.port} for {server.name} is taken: stop what listens there, or choose another with"
                f" `make serve {server.name.upper()}_PORT=...`"
            ) from None
    LOGS.mkdir(exist_ok=True)
    log = LOGS / f"{server.name}-server.log"
    command = [sys.executable, "-m", *server.module]
    with (
        log.open("wb") as output,
        started(command, STOP_SECONDS, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        yield process if _becomes_ready(server, process, log) else None


@contextmanager
def scheduling(environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run the schedule for the block, and stop it with its flow runs gracefully afterwards."""
    with started([sys.executable, "-m", *SCHEDULE], STOP_SECONDS, env=environment) as process:
        try:
            yield process
        finally:
            with signals_held():
                # The runner would kill its flow runs; TERM lets each write a checkpoint.
                with suppress(psutil.NoSuchProcess):
                    stop_flow_runs(psutil.Process(process.pid), GRACE_SECONDS + STOP_SECONDS)
                # Prefect's runner stops gracefully on INT, but not on TERM.
                process.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_SECONDS)


def watch(processes: dict[str, subprocess.Popen[bytes]]) -> None:
    """Wait until one of the processes ends.

    Raises:
        CannotServe: a process has ended; the message names it.
    """
    while True:
        for name, process in processes.items():
            if process.poll() is not None:
                raise CannotServe(f"the {name} ended with exit code {process.returncode}")
        time.sleep(1.0)


def user_page() -> str | None:
    """Return the address of the pages of the user's Prefect server, or None if none is configured.

    It runs in a child process, because importing Prefect fails if its settings are invalid.

    Raises:
        CannotServe: the server does not answer, or the settings cannot be read.
    """
    command = [sys.executable, "-m", "flows.user_server"]
    child = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if child.returncode == 2:
        raise CannotServe(child.stderr.splitlines()[-1].removeprefix("error: "))
    if child.returncode:
        raise CannotServe("Prefect cannot read its settings: fix what `prefect config view` complains of")
    return child.stdout or None


def _becomes_ready(server: Server, process: subprocess.Popen[bytes], log: Path) -> bool:
    """Wait until the server answers and return True; return False if the server is not needed."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        code = process.poll()
        if code == 0 and server.is_optional:
            print(f"{server.name}: {log.read_text(errors='replace').strip()}", flush=True)
            return False
        if code is not None:
            raise CannotServe(f"the {server.name} server ended with exit code {code}: {log} says why")
        try:
            urllib.request.urlopen(server.page + server.health, timeout=1).close()
        except OSError:
            time.sleep(0.2)
        else:
            print(f"{server.name}: {server.page}", flush=True)
            return True
    raise CannotServe(f"the {server.name} server did not answer within {START_SECONDS:.0f} seconds: {log} says why")


def _port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) <= LAST_PORT:
        raise ArgumentTypeError(f"a port is a number from 1 to {LAST_PORT}, which {text} is not")
    return int(text)


def main() -> None:
    """Serve until Ctrl-C or TERM; exit code 2 if a process cannot be started or ends."""
    parser = ArgumentParser("python -m stack.serve", description=__doc__)
    parser.add_argument("--prefect-port", type=_port, default=4200, help="of our Prefect server (default: 4200)")
    parser.add_argument("--mlflow-port", type=_port, default=5000, help="of MLflow's pages (default: 5000)")
    ports = parser.parse_args()
    signal.signal(signal.SIGTERM, leave)
    try:
        with ExitStack() as running_now:
            page = user_page()
            if page is None:
                servers = [prefect(ports.prefect_port), mlflow(ports.mlflow_port)]
                environment = {**os.environ, "PREFECT_API_URL": servers[0].page + "/api"}
            else:
                print(f"prefect: {page}", flush=True)
                servers = [mlflow(ports.mlflow_port)]
                # By default, Prefect derives logged links from the API's address with its password.
                environment = {**os.environ, "PREFECT_UI_URL": page}
            processes = {}
            for server in servers:
                process = running_now.enter_context(running(server))
                if process is not None:
                    processes[f"{server.name} server"] = process
            if "mlflow server" in processes and PAGE not in {**dotenv_values(".env"), **os.environ}:
                environment[PAGE] = servers[-1].page
            processes["schedule"] = running_now.enter_context(scheduling(environment))
            watch(processes)
    except CannotServe as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
