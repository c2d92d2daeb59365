"""A process that has passwords in memory leaves no core dump, although the shell allows one."""

import os
import resource
import signal
import socket
import subprocess
import sys
import time

import pytest

CANARY = "canary-of-a-crash"
UNPROTECTED = """
import sys
from diffusion_core import __main__ as command
command.forbid_core_dumps = lambda: None
command.main()
"""


@pytest.fixture
def silent():
    """The address of a server that takes connections and never answers, and what counts them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", listener.accept


def unlimited():
    """As `ulimit -c unlimited` does."""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))


def crash(arguments, folder, number, began, **variables):
    """Crash a process when it has begun, where its shell allows core dumps; return whether it left one."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.getcwd(), **variables},  # noqa: PTH109
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=unlimited,
    )
    try:
        connection = began()
        os.kill(process.pid, number)
        _, status = os.waitpid(process.pid, 0)
        process.returncode = -number
        del connection
    finally:
        process.kill()
    assert os.WTERMSIG(status) == number
    return os.WCOREDUMP(status) or any(each.name.startswith("core") for each in folder.iterdir())


@pytest.fixture(scope="module", autouse=True)
def _dumps_happen(tmp_path_factory):
    """The control of the machine: a process of nobody's leaves a dump."""
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        pytest.skip("this machine's hard limit allows no core dump")
    folder = tmp_path_factory.mktemp("control")
    if not crash(["-c", "import time; time.sleep(60)"], folder, signal.SIGSEGV, lambda: time.sleep(1)):
        pytest.skip("this machine writes no core dump for a plain process")


def upload(folder, silent, number, *program):
    (folder / "pictures").mkdir()
    (folder / "pictures/a.png").write_bytes(b"a")
    address, accept = silent
    arguments = [*program, "upload", "pictures", "s3://bucket/pictures"]
    secrets = {"DIFFUSION_S3_ACCESS_KEY": "me", "DIFFUSION_S3_SECRET_KEY": CANARY, "DIFFUSION_S3_ENDPOINT": address}
    return crash(arguments, folder, number, accept, **secrets)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_the_command_leaves_none(tmp_path, silent, number):
    assert not upload(tmp_path, silent, number, "-m", "diffusion_core")


def test_without_its_protection_the_command_leaves_one(tmp_path, silent):
    """The control."""
    assert upload(tmp_path, silent, signal.SIGSEGV, "-c", UNPROTECTED)


def test_what_speaks_to_prefect_leaves_none(tmp_path, silent):
    address, accept = silent
    variables = {"PREFECT_API_URL": f"{address}/api", "PREFECT_API_AUTH_STRING": f"admin:{CANARY}"}
    assert not crash(["-m", "flows.user_server"], tmp_path, signal.SIGSEGV, accept, **variables)


@pytest.mark.parametrize(
    "module", ["stack.__main__", "stack.serve", "flows.pipeline", "diffusion_core.supervision.worker"]
)
def test_what_these_start_leaves_none_either(tmp_path, module):
    """The limit of a server that `make stack` starts, for example, is that of the command."""
    shown = "import resource; print(resource.getrlimit(resource.RLIMIT_CORE)[0])"
    program = f"import subprocess, sys, {module}\nsubprocess.run([sys.executable, '-c', {shown!r}])"
    options = {"env": {**os.environ, "PREFECT_HOME": str(tmp_path)}, "preexec_fn": unlimited, "text": True}
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, **options)
    assert int(done.stdout) in (0, 1)
    # The control: without the module, the limit is that of the shell.
    plain = program.replace(f", {module}", "")
    done = subprocess.run([sys.executable, "-c", plain], stdout=subprocess.PIPE, check=True, **options)
    assert int(done.stdout) not in (0, 1)
