"""A training that measures how long it waits for its tracking store, and real MLflow servers for it."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from urllib.error import URLError
from urllib.request import urlopen

from tests.faults.commands import wait_for
from tests.faults.forks import VARIABLES
from tests.registry.projects import empty_store

# `diffusion train`, which writes the seconds that it waited for the store: before its first step, and after its last.
TIMED = """
import sys, time
from contextlib import contextmanager
from pathlib import Path
from diffusion_core.registry import tracking
from diffusion_core.registry.connection import is_server

if len(sys.argv) > 1:
    tracking.PATIENCE_SERVER = float(sys.argv[1])
original = tracking.training_run

@contextmanager
def timed(*arguments, **options):
    block = original(*arguments, **options)
    began = time.monotonic()
    run = block.__enter__()
    waited = time.monotonic() - began
    try:
        yield run
    finally:
        began = time.monotonic()
        block.__exit__(*sys.exc_info())
        Path("waited").write_text(str(waited + time.monotonic() - began))

tracking.training_run = timed
sys.argv = ["diffusion", "train"]
from diffusion_core.__main__ import main
main()
"""


def timed(folder, *patience, **variables):
    """Start a training that measures how long it waits for the store."""
    environment = {**os.environ, **VARIABLES, **variables}
    command = [sys.executable, "-c", TIMED, *patience]
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def stored(address, experiment="diffusion"):
    """The variables of a training or a replay that names its store."""
    return {"DIFFUSION_TRACKING_URI": address, "DIFFUSION_EXPERIMENT": experiment}


def ends(training):
    """Wait for the end of a training; return its messages."""
    _, errors = training.communicate(timeout=120)
    assert training.returncode == 0, errors
    return errors


def waited(folder):
    return float((folder / "waited").read_text(encoding="utf-8"))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(address):
    try:
        urlopen(f"{address}/health", timeout=2).close()
        return True
    except (URLError, OSError):
        return False


@contextmanager
def mlflow_server(folder, port):
    """A real server with its database in a folder, in a process group of its own."""
    folder.mkdir(exist_ok=True)
    if not (folder / "server.db").exists():
        (folder / "server.db").write_bytes(empty_store())
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder)]
    server = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder
    )
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}"))
        yield server
    finally:
        os.killpg(server.pid, signal.SIGCONT)
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


class Loses(BaseHTTPRequestHandler):
    """Passes requests to a server, and loses the first answer to `runs/create`."""

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        connection = HTTPConnection("127.0.0.1", self.server.behind)
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if self.path.endswith("runs/create"):
            self.server.created += 1
            if self.server.created == 1:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers["Content-Type"])
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT = do_PATCH = do_GET

    def log_message(self, *arguments):
        pass
