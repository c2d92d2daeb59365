import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL

from stack.serve import CannotServe, Server, mlflow, prefect, running, watch
from tests.flows.repository import CHECKOUT
from tests.ports import free_port
from tests.registry.projects import new_environment

# It listens at the port it is given, and has a child.
LISTENER = """
import http.server, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


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
        with pytest.raises(CannotServe, match=f"port {listener.port} .* `make serve LISTENER_PORT="), running(listener):
            pass
        assert owner.poll() is None


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http", "4200.0", "²"])
def test_what_is_no_port_is_told(port):
    command = [sys.executable, "-m", "stack.serve", f"--mlflow-port={port}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"a port is a number from 1 to 65535, which {port} is not" in done.stderr


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


def idle(folder):
    """A server that has nothing to do."""
    (folder / "idle.py").write_text("print('the pages are elsewhere')")
    return Server("idle", ("idle",), free_port(), "/")


def test_a_server_that_nobody_needs_is_no_trouble(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with running(replace(idle(tmp_path), is_optional=True)) as process:
        assert process is None
        assert capsys.readouterr().out == "idle: the pages are elsewhere\n"


def test_only_mlflows_pages_may_turn_out_to_be_needed_by_nobody(tmp_path, monkeypatch):
    assert [server.name for server in (prefect(4200), mlflow(5000)) if server.is_optional] == ["mlflow"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CannotServe, match="the idle server ended with exit code 0"), running(idle(tmp_path)):
        pass


@pytest.mark.parametrize("code", [0, 3])
def test_a_process_that_ends_is_noticed(code):
    with ExitStack() as processes:
        lasting, dying = (
            processes.enter_context(subprocess.Popen([sys.executable, "-c", program]))
            for program in ("import time; time.sleep(10); raise SystemExit(9)", f"raise SystemExit({code})")
        )
        processes.callback(lasting.kill)
        with pytest.raises(CannotServe, match=f"the dying ended with exit code {code}"):
            watch({"lasting": lasting, "dying": dying})


@contextmanager
def served(folder, ports, variables):
    """Serve in a folder for the block, which begins when the schedule works; yield the process and its output so far.

    Whatever it has started must be gone when it ends.
    """
    (folder / "prefect.yaml").symlink_to(CHECKOUT / "prefect.yaml")
    (folder / "flows").symlink_to(CHECKOUT / "flows")
    # On other ports, so that a machine that serves already can run this test.
    command = [sys.executable, "-m", "stack.serve", "--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1])]
    variables = {name: value for name, value in variables.items() if name != "PYTHONUNBUFFERED"}
    with (folder / "log").open("w") as log:
        # The folder is no checkout, and `stack` is installed nowhere.
        path = {"PYTHONPATH": str(CHECKOUT)}
        process = subprocess.Popen(command, cwd=folder, env={**variables, **path}, stdout=log, stderr=log)
    family = []
    try:
        deadline = time.monotonic() + 120
        while "polling for scheduled runs" not in (output := (folder / "log").read_text()):
            assert process.poll() is None, output
            assert time.monotonic() < deadline
            time.sleep(0.2)
        family = psutil.Process(process.pid).children(recursive=True)
        yield process, output
    finally:
        process.terminate()
        process.wait(60)
    assert not [each for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def test_one_machine_serves_both_pages_and_the_nightly_run_until_term(tmp_path, server_variables):
    new_environment(tmp_path)
    ports = [free_port(), free_port()]
    variables = server_variables | {"DIFFUSION_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    with served(tmp_path, ports, variables) as (process, output):
        assert output.startswith(f"prefect: http://127.0.0.1:{ports[0]}\nmlflow: http://127.0.0.1:{ports[1]}\n")
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
        # The pages that its runs name are those at this port.
        schedules = [each for each in psutil.Process(process.pid).children() if "flows.schedule" in each.cmdline()]
        pages = [each.environ()["DIFFUSION_TRACKING_PAGE"] for each in schedules]
        assert pages == [f"http://127.0.0.1:{ports[1]}"]
    assert process.returncode == 128 + signal.SIGTERM


def test_servers_that_the_user_has_are_used_and_none_is_started(tmp_path, users_prefect):
    ports = [free_port(), free_port()]
    variables = users_prefect | {"DIFFUSION_TRACKING_URI": "http://somebody:secret@127.0.0.1:9"}
    with served(tmp_path, ports, variables) as (process, output):
        assert output.startswith(f"prefect: {PREFECT_API_URL.value().removesuffix('/api')}\nmlflow: ")
        assert "secret" not in output
        (schedule,) = psutil.Process(process.pid).children()
        assert "DIFFUSION_TRACKING_PAGE" not in schedule.environ()
        # A schedule that ends by itself, and in good order, leaves nothing to serve.
        schedule.send_signal(signal.SIGINT)
        process.wait(30)
    with get_client(sync_client=True) as client:
        client.delete_deployment(client.read_deployment_by_name("pipeline/nightly").id)
    assert process.returncode == 2
    assert (tmp_path / "log").read_text().splitlines()[-1] == "error: the schedule ended with exit code 0"


# Stand-ins for all three.
SERVE_STAND_INS = """
import sys
from stack import serve

serve.STOP_SECONDS = 3.0
serve.prefect = lambda port: serve.Server("prefect", ("listener", str(port)), port, "/")
serve.mlflow = lambda port: serve.Server("mlflow", ("listener", str(port)), port, "/")
serve.SCHEDULE = ("schedule",)
serve.main()
"""

STUBBORN = """
import signal, time
from pathlib import Path
for name in ("SIGINT", "SIGTERM"):
    signal.signal(getattr(signal, name), lambda number, _: Path(signal.Signals(number).name).touch())
Path("ready").touch()
while True:
    time.sleep(1)
"""

ORDERLY = """
import time
from pathlib import Path
Path("ready").touch()
try:
    time.sleep(60)
except KeyboardInterrupt:
    Path("SIGINT").touch()
    time.sleep(1)
    Path("in good order").touch()
"""


def press_ctrl_c(folder, schedule, moments):
    """Serve that schedule, press Ctrl-C when it has written each of these files, and return who is left."""
    (folder / "listener.py").write_text(LISTENER)
    (folder / "schedule.py").write_text(schedule)
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", SERVE_STAND_INS),
            *("--prefect-port", str(free_port()), "--mlflow-port", str(free_port())),
        ],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    family = []
    try:
        for moment in moments:
            deadline = time.monotonic() + 30
            while not (folder / moment).exists():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            family = family or psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGINT)
        process.wait(60)
        left = [each for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    finally:
        for each in [process, *family]:
            with suppress(psutil.NoSuchProcess):
                each.kill()
    assert len(family) == 5
    assert process.returncode == 128 + signal.SIGINT
    assert process.communicate()[1] == ""
    return left


def test_who_presses_ctrl_c_again_and_again_leaves_nobody(tmp_path):
    assert press_ctrl_c(tmp_path, STUBBORN, ["ready", "SIGINT", "SIGTERM"]) == []


def test_who_presses_ctrl_c_twice_lets_the_schedule_end_in_good_order(tmp_path):
    press_ctrl_c(tmp_path, ORDERLY, ["ready", "SIGINT"])
    assert (tmp_path / "in good order").exists()
