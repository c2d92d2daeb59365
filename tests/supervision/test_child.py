import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from diffusion_core.supervision.child import run_child

# A command that starts another; both write down who they are, and then work for a minute.
FAMILY = """
import os, subprocess, sys, time
from pathlib import Path
if len(sys.argv) == 1:
    subprocess.Popen([sys.executable, __file__, "grandchild"])
Path(f"{os.getpid()}.pid").touch()
time.sleep(60)
"""

OWNER = """
import os, signal, sys
from diffusion_core.supervision.child import run_child
def leave(*_):
    raise SystemExit(143)
signal.signal(signal.SIGTERM, leave)
run_child([sys.executable, "family.py"], dict(os.environ), lambda output: os.write(1, output))
"""

# The same without a group: TERM goes to the child alone.
CARELESS_OWNER = """
import signal, subprocess, sys
child = subprocess.Popen([sys.executable, "family.py"])
def leave(*_):
    child.terminate()
    raise SystemExit(143)
signal.signal(signal.SIGTERM, leave)
child.wait()
"""


def python(code):
    return [sys.executable, "-c", code]


def run(code, **variables):
    output = bytearray()
    return run_child(python(code), {**os.environ, **variables}, output.extend), output.decode()


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return result


def alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_output_of_both_streams_comes_in_order_and_the_exit_code_after_it():
    code, output = run("import sys; print(1, flush=True); print(2, file=sys.stderr, flush=True); print(3); sys.exit(7)")
    assert (code, output) == (7, "1\n2\n3\n")


def test_a_signal_is_a_negative_code():
    assert run("import os; os.kill(os.getpid(), 9)")[0] == -9


def test_the_child_has_the_given_variables_and_nothing_to_read():
    assert run("import os, sys; print(os.environ['WORD'], repr(sys.stdin.read()))", WORD="x") == (0, "x ''\n")


ABANDONED = """
import os, time
from pathlib import Path
Path(f"{os.getpid()}.pid").touch()
os.close(1)
os.close(2)
time.sleep(60)
"""


def test_whoever_a_command_leaves_behind_is_ended(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _ = run(
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {ABANDONED!r}]); time.sleep(2)"
    )
    assert code == 0
    (pid,) = members(tmp_path)
    wait_for(lambda: not alive(pid))


def members(folder):
    return [int(file.stem) for file in folder.glob("*.pid")]


def end_by_term(folder, owner):
    """Run an owner of a family, end it by TERM, and return its exit code and the family's members."""
    (folder / "family.py").write_text(FAMILY)
    process = subprocess.Popen(python(owner), cwd=folder)
    wait_for(lambda: len(members(folder)) == 2)
    process.send_signal(signal.SIGTERM)
    return process.wait(30), members(folder)


def test_term_leaves_nobody(tmp_path):
    code, family = end_by_term(tmp_path, OWNER)
    assert code == 143
    assert not [pid for pid in family if alive(pid)]


def test_without_a_group_term_would_leave_one(tmp_path):
    _, family = end_by_term(tmp_path, CARELESS_OWNER)
    (left,) = [pid for pid in family if alive(pid)]
    os.kill(left, signal.SIGKILL)


# Its first process is started in the very moment in which it is asked to leave.
ASKED_TO_LEAVE = """
import os, signal, subprocess, sys
from pathlib import Path
from diffusion_core.supervision.child import run_child, started
def leave(*_):
    raise SystemExit(143)
signal.signal(signal.SIGTERM, leave)
class Popen(subprocess.Popen):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        Path(f"{self.pid}.pid").touch()
        os.kill(os.getpid(), signal.NUMBER)
subprocess.Popen = Popen
command = [sys.executable, "-c", "import time; time.sleep(60)"]
"""


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("start", ["run_child(command, dict(os.environ), print)", "with started(command, 1): pass"])
def test_who_is_asked_to_leave_while_starting_a_process_leaves_none(tmp_path, start, number):
    program = ASKED_TO_LEAVE.replace("NUMBER", number) + start
    code = subprocess.run(python(program), cwd=tmp_path, stderr=subprocess.DEVNULL, check=False).returncode
    assert code in (143, -signal.SIGINT)
    (pid,) = members(tmp_path)
    assert not alive(pid)


STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: print("heard", flush=True))
print("ready", flush=True)
while True:
    time.sleep(1)
"""


@pytest.mark.parametrize("grace", [0.0, 1.0])
def test_who_does_not_heed_term_is_killed_after_its_grace(tmp_path, grace):
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    owner = OWNER.replace("family.py", "stubborn.py").replace(
        "def leave",
        f"import diffusion_core.supervision.child; diffusion_core.supervision.child.GRACE_SECONDS = {grace}\ndef leave",
    )
    process = subprocess.Popen(python(owner), cwd=tmp_path, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    (child,) = psutil.Process(process.pid).children()
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    assert process.wait(30) == 143
    # A grace is a time that passes at least.
    assert time.monotonic() - began >= grace
    assert rest == (b"heard\n" if grace else b"")
    assert not alive(child.pid)


def test_last_words_after_term_are_heard(tmp_path):
    (tmp_path / "family.py").write_text(STUBBORN.replace('print("heard", flush=True)', 'sys.exit(print("saved"))'))
    process = subprocess.Popen(python(OWNER), cwd=tmp_path, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == b"saved\n"
    assert process.wait(30) == 143


SAVES = STUBBORN.replace(
    'print("heard", flush=True)',
    """(
    print("saves", flush=True), time.sleep(1), sys.exit(print("saved"))
)""",
)
# The same without the protection.
HASTY_OWNER = f"import contextlib, diffusion_core.supervision.child as child{OWNER}".replace(
    "run_child([", "child.signals_held = contextlib.nullcontext\nrun_child(["
)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("owner", "rest"), [(OWNER, b"saved\n"), (HASTY_OWNER, b"")])
def test_a_second_signal_does_not_cut_the_grace_short(tmp_path, owner, rest, second):
    (tmp_path / "family.py").write_text(SAVES)
    process = subprocess.Popen(python(owner), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout.readline() == b"ready\n"
    process.terminate()
    assert process.stdout.readline() == b"saves\n"
    process.send_signal(second)
    assert process.stdout.read() == rest
    assert process.wait(30) in (143, -signal.SIGINT)
