"""A run tells the addresses in DIFFUSION_NOTIFY how it ended, and no address can fail it or leak."""

import json
import logging
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from apprise import NotifyType

from flows.failure import StageFailed
from flows.notices import send
from flows.pipeline import pipeline
from tests.flows.repository import ran

pytestmark = [pytest.mark.usefixtures("prefect_server"), pytest.mark.servers]

SECRET = "s3cret-t0ken"


@pytest.fixture
def webhook():
    """A server that keeps what is posted to it, and its messages."""
    messages = []

    class Keep(BaseHTTPRequestHandler):
        def do_POST(self):
            messages.append((self.path, json.loads(self.rfile.read(int(self.headers["content-length"])))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Keep)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"json://127.0.0.1:{server.server_port}/{SECRET}", messages
    server.shutdown()
    server.server_close()
    thread.join()


def fail(project):
    (project / "on_ingest.py").write_text("import sys; print('error: no images: add some'); sys.exit(2)")


def test_a_failure_is_told_with_its_reason(project, webhook, monkeypatch):
    address, messages = webhook
    monkeypatch.setenv("DIFFUSION_NOTIFY", f"{address} {address}")
    fail(project)
    state = pipeline(return_state=True)
    assert state.is_failed()
    (path, first), (_, second) = messages
    assert path == f"/{SECRET}"
    assert first == second
    assert first["title"].startswith("pipeline ")
    assert first["title"].endswith(" failed")
    assert first["message"].strip() == "ingest: no images: add some"
    assert first["type"] == "failure"


@pytest.mark.parametrize(("outcome", "kind"), [("promoted", "success"), ("refused", "warning"), ("unchanged", None)])
def test_the_decision_of_the_gate_is_told_where_it_is_news(project_after_a_run, webhook, monkeypatch, outcome, kind):
    address, messages = webhook
    monkeypatch.setenv("DIFFUSION_NOTIFY", address)
    module = project_after_a_run / "diffusion_core/__main__.py"
    module.write_text(module.read_text().replace('"refused"', f'"{outcome}"'))
    pipeline(refresh_data=False)
    found = [(each["title"], each["message"], each["type"]) for _, each in messages]
    text = "version 7 is refused: frechet is 2.5, 1.5 above 1\nhttp://127.0.0.1:5000/#/experiments/1/runs/abc"
    assert found == ([(f"diffusion was {outcome}", text, kind)] if kind else [])


def test_a_message_holds_no_password(webhook, monkeypatch):
    address, messages = webhook
    monkeypatch.setenv("DIFFUSION_NOTIFY", address)
    body = "422 for http://admin:pw@host:4200/api, of <img src=x>\n2"
    send("a", body, NotifyType.INFO, logging.getLogger())
    ((_, message),) = messages
    assert message["message"] == "422 for http://host:4200/api, of <img src=x>\n2"


def test_an_address_that_does_not_answer_fails_no_run_and_is_not_shown(project_after_a_run, monkeypatch, caplog):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("DIFFUSION_NOTIFY", f"json://127.0.0.1:{port}/{SECRET}")
    with caplog.at_level(logging.DEBUG):
        state = pipeline(refresh_data=False, return_state=True)
    assert state.is_completed()
    assert "1 of 1 addresses in DIFFUSION_NOTIFY did not take a message" in caplog.text
    assert SECRET not in caplog.text


def test_an_address_that_nobody_knows_stops_the_run_before_its_first_stage(project, monkeypatch, caplog, webhook):
    address, messages = webhook
    monkeypatch.setenv("DIFFUSION_NOTIFY", f"{address} {address},nonsense://{SECRET}")
    with caplog.at_level(logging.DEBUG), pytest.raises(StageFailed, match="does not know address 2 of 2") as caught:
        pipeline()
    assert caught.value.is_mistake
    assert SECRET not in caplog.text + str(caught.value)
    assert ran(project) == []
    # The other one is told.
    assert "does not know address 2 of 2" in messages[0][1]["message"]
