"""A training that measures how long its tracking store holds it, and real MLflow servers for it."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from itertools import count
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tests.faults.commands import run, wait_for
from tests.registry.projects import empty_store

HERE = f"importlib.import_module({__name__!r})"
FILE = "waited"
STEP = "diffusion_core.training.trainer:Trainer._train_step"


class Watch:
    """Adds up the seconds that functions take."""

    def __init__(self):
        self.seconds = 0.0

    def of(self, function):
        """Return the function, with its seconds added."""

        def watched(*arguments, **options):
            began = time.monotonic()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += time.monotonic() - began

        return watched


class WatchedRun:
    """A run as the training sees it: its methods are watched."""

    def __init__(self, run, watch):
        self._run, self._watch = run, watch

    def __getattr__(self, name):
        value = getattr(self._run, name)
        return self._watch.of(value) if callable(value) else value


def watched(training_run):
    """Return `training_run`, which writes the seconds of its begin, of its end and of all that a training logs."""

    @contextmanager
    def block(*arguments, **options):
        watch, original = Watch(), training_run(*arguments, **options)
        run = watch.of(original.__enter__)()
        try:
            yield WatchedRun(run, watch)
        finally:
            watch.of(original.__exit__)(*sys.exc_info())
            Path(FILE).write_text(str(watch.seconds))

    return block


def acting(step, actions):
    """Return a step of a training, before which an action runs where its number has one."""
    numbers = count(1)

    def acts(*arguments):
        actions.get(next(numbers), lambda: None)()
        return step(*arguments)

    return acts


def before_steps(**actions):
    """Return the setting of a training that runs expressions before steps, `step_5="..."` for example."""
    numbered = ", ".join(f"{name.removeprefix('step_')}: lambda: {action}" for name, action in actions.items())
    return {STEP: f"{HERE}.acting(original, {{{numbered}}})"}


def wait_until_taken():
    """Wait until the store has taken something of the training here; a slow one does so later than the first steps."""
    wait_for(lambda: [*Path(".checkpoints").glob("*/outbox/sent")])


TAKEN = f"{HERE}.wait_until_taken()"


def signals(server, name):
    """Return the expression that sends a signal to a server, once that has taken something."""
    return f"({TAKEN}, os.killpg({server.pid}, signal.{name}))"


def timed(folder, address, experiment="diffusion", setting=None):
    """Run a training that measures how long its store holds it."""
    setting = {"diffusion_core.stages.train:training_run": f"{HERE}.watched(original)", **(setting or {})}
    return run(folder, "train", setting=setting, **stored(address, experiment))


def ends(*arguments, **options):
    """Run a training that ends well, although the store has not taken all of it."""
    done = timed(*arguments, **options)
    assert done.returncode == 0, done.stderr
    assert "wait in .checkpoints/" in done.stderr


def stored(address, experiment="diffusion"):
    """The variables of a training or a replay that names its store."""
    return {"DIFFUSION_TRACKING_URI": address, "DIFFUSION_EXPERIMENT": experiment}


def waited(folder):
    """Return the seconds that the store has held a training."""
    return float((folder / FILE).read_text(encoding="utf-8"))


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
    """Passes requests to a server, and loses the first answer to those whose path ends with `path_of_lost`."""

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        connection = HTTPConnection("127.0.0.1", self.server.behind)
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if self.command == "POST" and self.path.endswith(self.server.path_of_lost):
            self.server.created += 1
            if self.server.created == 1:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers["Content-Type"])
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def log_message(self, *arguments):
        pass
