import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack

import psutil
import pytest

from flows.serve import CannotServe, Server, running, watch
from tests.flows.repository import CHECKOUT
from tests.registry.projects import new_environment

# It listens at the port it is given, and has a child.
LISTENER = """
import http.server, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def listener(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "listener.py").write_text(LISTENER)
    port = free_port()
    return Server("listener", ("listener", str(port)), port, "/")


def test_a_server_answers_in_the_block_and_is_gone_with_its_children_afterwards(listener, capsys):
    with running(listener) as process:
        urllib.request.urlopen(listener.page).close()
        (child,) = psutil.Process(process.pid).children()
    assert process.returncode is not None
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert capsys.readouterr().out == f"listener: {listener.page}\n"


def test_a_taken_port_is_told_and_its_owner_left_alone(listener):
    with running(listener) as owner:
        with pytest.raises(CannotServe, match=f"port {listener.port} for listener is taken"), running(listener):
            pass
        assert owner.poll() is None


def test_a_server_that_does_not_start_is_told_with_its_log(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("raise SystemExit('no such database')")
    with (
        pytest.raises(CannotServe, match=r"exit code 1: (.*) says why") as caught,
        running(Server("broken", ("broken",), free_port(), "/")),
    ):
        pass
    log = re.search(r": (\S+) says why", str(caught.value))[1]
    assert "no such database" in (tmp_path / log).read_text()


def test_a_server_that_nobody_needs_is_no_trouble(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "idle.py").write_text("print('the pages are elsewhere')")
    with running(Server("idle", ("idle",), free_port(), "/")):
        assert "the pages are elsewhere" in capsys.readouterr().out


def test_a_process_that_dies_is_noticed():
    with ExitStack() as processes:
        lasting, dying = (
            processes.enter_context(subprocess.Popen([sys.executable, "-c", code]))
            for code in ("import time; time.sleep(60)", "raise SystemExit(3)")
        )
        with pytest.raises(CannotServe, match="the dying ended with exit code 3"):
            watch({"lasting": lasting, "dying": dying})
        lasting.kill()


# `make serve` on other ports, so that a machine that serves already can run this test.
SERVE = """
import sys
from dataclasses import replace
from flows import serve

def at(server, port):
    module = tuple(str(port) if each == str(server.port) else each for each in server.module)
    return replace(server, port=port, module=module)

serve.PREFECT, serve.MLFLOW = at(serve.PREFECT, int(sys.argv[1])), at(serve.MLFLOW, int(sys.argv[2]))
serve.main()
"""


def test_one_machine_serves_both_pages_and_the_nightly_run_until_term(tmp_path, monkeypatch, server_variables):
    monkeypatch.chdir(tmp_path)
    environment = new_environment(tmp_path)
    (tmp_path / "prefect.yaml").symlink_to(CHECKOUT / "prefect.yaml")
    (tmp_path / "flows").symlink_to(CHECKOUT / "flows")
    ports = [free_port(), free_port()]
    variables = server_variables | {"DIFFUSION_TRACKING_URI": environment.tracking_uri}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, *map(str, ports)], env=variables, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 120
        while "polling for scheduled runs" not in (tmp_path / "log").read_text():
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        request = urllib.request.Request(
            f"http://127.0.0.1:{ports[0]}/api/deployments/name/pipeline/nightly", headers={"Accept": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer)["schedules"][0]["schedule"]["cron"] == "0 2 * * *"
        search = urllib.request.Request(
            f"http://127.0.0.1:{ports[1]}/api/2.0/mlflow/experiments/search?max_results=1",
            headers={"Accept": "application/json"},
        )
        with urllib.request.urlopen(search) as answer:
            assert json.load(answer)["experiments"][0]["name"] == "Default"
        family = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert not [each for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
