"""The flow as a command: its exit codes, signals, the server that it uses, and others at work beside it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from prefect.client.orchestration import get_client

from flows.failure import StageFailed
from flows.pipeline import pipeline
from tests.flows.repository import ran
from tests.flows.runs import SLOW_STAGE, start_flow, with_our_server

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_a_second_run_in_one_checkout_is_refused_while_the_first_lives_and_not_after_it_was_killed(project):
    (project / "on_ingest.py").write_text("import time; open('busy', 'w').close(); time.sleep(60)")
    other = start_flow(with_our_server())
    try:
        while not (project / "busy").exists():
            assert other.poll() is None, other.stdout.read()
            time.sleep(0.1)
        refusal = rf"another run works in .*project \(process {other.pid}\): wait until it ends"
        with pytest.raises(StageFailed, match=refusal) as caught:
            pipeline()
        assert caught.value.is_mistake
        family = psutil.Process(other.pid).children(recursive=True)
    finally:
        for each in [other, *family]:
            each.kill()
        other.communicate()
        # DVC takes a process for alive until its parent has counted it.
        psutil.wait_procs(family, 10)
    (project / "on_ingest.py").unlink()
    pipeline()


def test_the_command_ends_with_code_2_and_the_sentence(project):
    (project / "on_ingest.py").write_text(
        "import sys; print('error: no images: add some', file=sys.stderr); sys.exit(2)"
    )
    process = start_flow(with_our_server())
    output = process.communicate()[0]
    assert process.returncode == 2
    # Prefect may tell after it of events that are still on their way.
    assert output.splitlines().count("error: ingest: no images: add some") == 1
    assert "Traceback" not in output


def test_no_line_of_a_run_shows_the_password_of_the_users_server(project, users_prefect):
    (project / "on_ingest.py").write_text("raise SystemExit(2)")
    output = start_flow(users_prefect).communicate()[0]
    assert "/runs/flow-run/" in output
    assert "secret" not in output


def test_another_dvc_command_at_work_is_told(project):
    (project / "on_ingest.py").write_text("import time; open('busy', 'w').close(); time.sleep(60)")
    other = subprocess.Popen([sys.executable, "-m", "dvc", "repro", "ingest"], start_new_session=True)
    try:
        while not (project / "busy").exists():
            assert other.poll() is None
            time.sleep(0.1)
        with pytest.raises(StageFailed, match="another DVC command works in this folder") as caught:
            pipeline()
        assert caught.value.is_mistake
    finally:
        os.killpg(other.pid, signal.SIGKILL)
        other.wait()


def stop_in_mid_stage(project, variables, stop):
    """Start the flow, call `stop` when its first stage is at work, and return the output and the code it ended with."""
    (project / "on_ingest.py").write_text(SLOW_STAGE)
    process = start_flow(variables)
    while not (project / "pids").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    assert {int(pid) for pid in (project / "pids").read_text().split()} <= {each.pid for each in family}
    stop(process.pid)
    output = process.communicate(timeout=60)[0]
    assert not [each for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    return output, process.returncode


def test_term_leaves_no_process_and_no_running_state(project):
    output, code = stop_in_mid_stage(project, with_our_server(), lambda pid: os.kill(pid, signal.SIGTERM))
    assert code == 128 + signal.SIGTERM, output
    ((_, flow_run_id),) = ran(project)
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(flow_run_id).state.is_crashed()
    # DVC's lock died with it.
    (project / "on_ingest.py").unlink()
    subprocess.run([sys.executable, "-m", "dvc", "repro", "ingest"], check=True, capture_output=True)


def test_ctrl_c_in_a_terminal_reaches_the_temporary_server_too_and_the_run_is_reported_all_the_same(
    project, server_variables
):
    output, code = stop_in_mid_stage(project, server_variables, lambda pid: os.killpg(pid, signal.SIGINT))
    assert code == 128 + signal.SIGINT, output
    assert "Finished in state Crashed" in output
    assert "Traceback" not in output


@pytest.fixture
def profile(project, server_variables):
    """Write the only profile of a user without a Prefect server, and return the user's variables."""

    def write(line):
        folder = Path(server_variables["PREFECT_HOME"])
        folder.mkdir()
        (folder / "profiles.toml").write_text(f'active = "mine"\n[profiles.mine]\n{line}\n')
        return server_variables

    return write


def test_a_profile_that_names_no_server_does_with_a_temporary_one(project, profile):
    (project / "on_ingest.py").write_text("import sys; sys.exit(print('error: no images: add some'))")
    output = start_flow(profile('PREFECT_LOGGING_COLORS = "false"')).communicate()[0]
    assert "Starting temporary server" in output
    assert "Traceback" not in output


def test_a_user_who_wants_no_temporary_server_is_told_to_name_one(profile):
    process = start_flow(profile('PREFECT_SERVER_EPHEMERAL_ENABLED = "false"'))
    (line,) = process.communicate()[0].splitlines()
    assert process.returncode == 2
    assert line.startswith("error: ")
    assert "PREFECT_API_URL" in line


def test_flows_load_neither_torch_nor_mlflow():
    program = "import sys, flows.pipeline, stack.serve; print({'torch', 'mlflow'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
