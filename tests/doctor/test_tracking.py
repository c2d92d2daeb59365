import json
import time
from http.server import BaseHTTPRequestHandler

import pytest

from diffusion_core.config.environment import Environment
from diffusion_core.doctor.tracking import queues, tracking_store
from diffusion_core.lineage.checkpoints import LOCK
from diffusion_core.lineage.outbox import Outbox
from diffusion_core.locks import exclusive_lock
from diffusion_core.registry.connection import connect
from diffusion_core.registry.experiments import experiment_id
from diffusion_core.registry.sending import RUN_KEY
from tests.doctor.findings import is_silent, worst
from tests.ports import free_port
from tests.registry.projects import new_environment
from tests.registry.servers import serving


@pytest.fixture
def environment(folder):
    return new_environment(folder)


def contents(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def start_run(environment, key, hours=0.0):
    client = connect(environment)
    began = int((time.time() - hours * 3600) * 1000)
    return client, client.create_run(experiment_id(client, environment), began, tags={RUN_KEY: key}).info.run_id


def test_a_run_whose_process_died_here_is_found_and_stays_as_it_is(environment, folder):
    outbox = Outbox(environment.checkpoints / "abc" / "outbox")
    client, run = start_run(environment, outbox.key)
    with exclusive_lock(outbox.folder.parent / LOCK):
        assert is_silent(tracking_store, environment)
    before = contents(folder)
    found = worst(tracking_store, environment)
    assert (run in found.sentence, "diffusion replay" in found.remedy) == (True, True)
    assert contents(folder) == before
    assert client.get_run(run).info.status == "RUNNING"
    client.set_terminated(run)
    assert is_silent(tracking_store, environment)


def test_a_run_of_another_machine_is_found_when_it_has_been_silent_for_long(environment):
    client, run = start_run(environment, "0" * 32, hours=3.0)
    assert "nothing for 3 hours" in worst(tracking_store, environment).sentence
    client.log_metric(run, "loss", 1.0)
    assert is_silent(tracking_store, environment)


def test_what_waits_for_the_store_is_found(environment):
    assert is_silent(queues, environment)
    outbox = Outbox(environment.checkpoints / "abc" / "outbox")
    outbox.append({"kind": "tag", "key": "a", "value": "b", "time": 0})
    found = worst(queues, environment)
    assert (found.sentence[:15], found.remedy) == ("1 entries wait ", "run `diffusion replay`")
    assert outbox.count_unsent() == 1


def test_a_store_that_is_not_there_yet_is_not_made(folder):
    assert is_silent(tracking_store, Environment())
    assert not (folder / "mlflow.db").exists()


@pytest.mark.parametrize("is_silent_port", [False, True])
def test_a_server_that_does_not_answer_is_found_soon(silent_port, is_silent_port):
    port = silent_port if is_silent_port else free_port()
    began = time.monotonic()
    found = worst(tracking_store, Environment(tracking_uri=f"http://admin:canary@127.0.0.1:{port}"))
    assert time.monotonic() - began < 12.0
    assert (found.verdict, "canary" in found.sentence + found.remedy) == ("problem", False)


def test_a_wrong_password_is_found(locked_server):
    found = worst(tracking_store, Environment(tracking_uri=f"http://admin:canary@127.0.0.1:{locked_server}"))
    assert "401" in found.sentence
    assert "canary" not in found.sentence + found.remedy


class _Other(BaseHTTPRequestHandler):
    """A server of MLflow without any experiment."""

    version = "2.9.1"

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.end_headers()
        self.wfile.write((self.version if self.path == "/version" else json.dumps({"experiments": []})).encode())

    do_POST = do_GET

    def log_message(self, *arguments):
        pass


def test_a_server_of_another_version_is_found(monkeypatch):
    with serving(_Other) as server:
        environment = Environment(tracking_uri=f"http://127.0.0.1:{server.server_port}", experiment="x")
        monkeypatch.setattr("diffusion_core.doctor.tracking.unfinished_runs", lambda *_: [])
        assert "MLflow 2.9.1" in worst(tracking_store, environment).sentence
        monkeypatch.setattr("diffusion_core.doctor.tracking.version", lambda _: "2.9.0")
        assert is_silent(tracking_store, environment)
