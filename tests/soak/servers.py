"""Real servers that are killed, stopped and started again."""

import os
import signal
import subprocess
import time
from urllib.request import urlopen

from tests.ports import free_port
from tests.registry.projects import empty_store
from tests.soak.project import module

START_SECONDS = 120.0


class Server:
    """A server at the head of a process group.

    Args:
        arguments: module and arguments.
        folder: its working folder, where its log is.
        variables: its environment.
        health: the address that answers when it is ready.
    """

    def __init__(self, arguments, folder, variables, health):
        self._command, self._folder, self._variables, self._health = module(*arguments), folder, variables, health
        self._process = None

    def start(self):
        """Start it, or let it resume where it is stopped."""
        self.send(signal.SIGCONT)
        if self.lives():
            return
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=self._variables,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def lives(self):
        return self._process is not None and self._process.poll() is None

    def wait(self):
        """Wait until it answers."""
        end = time.monotonic() + START_SECONDS
        while not self.answers():
            assert time.monotonic() < end, f"it does not answer: {self._folder}/server.log says why"
            assert self.lives(), f"it has ended: {self._folder}/server.log says why"
            time.sleep(0.2)

    def answers(self):
        try:
            urlopen(self._health, timeout=2).close()
            return True
        except OSError:
            return False

    def send(self, number):
        """Send a signal to its process group."""
        if self.lives():
            os.killpg(self._process.pid, number)

    def kill(self):
        self.send(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()


def mlflow_server(folder, variables):
    """Return an MLflow server with its database in a folder, and its address."""
    folder.mkdir()
    (folder / "server.db").write_bytes(empty_store())
    port = free_port()
    arguments = ("mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1")
    arguments += ("--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder))
    address = f"http://127.0.0.1:{port}"
    return Server(arguments, folder, variables, f"{address}/health"), address


def prefect_server(folder, variables):
    """Return a Prefect server with its database in a folder, and the address of its API."""
    folder.mkdir()
    port = free_port()
    arguments = ("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))
    address = f"http://127.0.0.1:{port}/api"
    return Server(arguments, folder, variables | {"PREFECT_HOME": str(folder)}, f"{address}/health"), address
