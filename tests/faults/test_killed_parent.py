"""What a killed process has started ends with it: here a flow's child, its children, and a server that runs already."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from tests.faults.commands import wait_for

# As DVC does: a shell between the child and what works. Each says who it is; the last hears TERM before it ends.
FAMILY = """
import os, signal, subprocess, sys, time
from pathlib import Path

def heard(*_):
    Path("heard").touch()
    sys.exit(143)

if len(sys.argv) == 1:
    subprocess.Popen(["sh", "-c", f"{sys.executable} family.py working; true"])
else:
    signal.signal(signal.SIGTERM, heard)
Path(f"{os.getpid()}.pid").touch()
time.sleep(120)
"""
OWNERS = {
    "run_child": """
import os
from diffusion_core.supervision.child import run_child
run_child([{python!r}, "family.py"], dict(os.environ), lambda _: None)
""",
    "tie": """
import subprocess
from diffusion_core.supervision.tied import tie
server = subprocess.Popen([{python!r}, "family.py", "working"], start_new_session=True)
tie(server.pid)
open("tied", "w").close()
server.wait()
""",
    "nothing": """
import subprocess
subprocess.Popen([{python!r}, "family.py"], start_new_session=True).wait()
""",
}


def members(folder):
    return [psutil.Process(int(file.stem)) for file in folder.glob("*.pid") if psutil.pid_exists(int(file.stem))]


def lives(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def kill_owner(folder, owner, count, ready=None):
    """Kill the owner of a family when all its members are there; return them."""
    (folder / "family.py").write_text(FAMILY, encoding="utf-8")
    process = subprocess.Popen([sys.executable, "-c", OWNERS[owner].format(python=sys.executable)], cwd=folder)
    wait_for(lambda: len(members(folder)) == count and (ready is None or (folder / ready).exists()))
    if owner == "tie":
        # The watcher has to have told Linux.
        wait_for(lambda: any("--end" in each.cmdline() for each in psutil.Process(process.pid).children()))
    family = members(folder)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return family


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals that a parent has died")


def test_what_a_killed_flow_has_started_ends_and_hears_term_first(tmp_path):
    family = kill_owner(tmp_path, "run_child", 2)
    wait_for(lambda: not any(map(lives, family)), 30.0)
    assert (tmp_path / "heard").exists()


def test_a_server_that_was_tied_ends(tmp_path):
    family = kill_owner(tmp_path, "tie", 1, ready="tied")
    wait_for(lambda: not any(map(lives, family)), 30.0)


# The watcher, where the start of its command takes long.
SLOW_START = """
import subprocess, sys, time
from pathlib import Path

class Popen(subprocess.Popen):
    def __init__(self, *arguments, **options):
        Path("starts").touch()
        time.sleep(2.0)
        super().__init__(*arguments, **options)
        Path(f"{self.pid}.pid").touch()

subprocess.Popen = Popen
from diffusion_core.supervision import tied
tied.main()
"""
OWNER_OF_SLOW = """
import os, subprocess, sys
subprocess.Popen([sys.executable, "slow.py", str(os.getpid()), "sleep", "60"], start_new_session=True).wait()
"""


def test_a_command_that_starts_while_its_owner_is_killed_ends(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW_START, encoding="utf-8")
    owner = subprocess.Popen([sys.executable, "-c", OWNER_OF_SLOW], cwd=tmp_path)
    wait_for((tmp_path / "starts").exists)
    # The watcher has told Linux and hears of it now, without a child.
    owner.kill()
    owner.wait()
    (file,) = wait_for(lambda: [*tmp_path.glob("*.pid")])
    wait_for(lambda: not psutil.pid_exists(int(file.stem)) or not lives(psutil.Process(int(file.stem))), 15.0)


def test_without_it_they_would_live_on(tmp_path):
    """The control."""
    family = kill_owner(tmp_path, "nothing", 2)
    try:
        with pytest.raises(AssertionError, match="it never came"):
            wait_for(lambda: not any(map(lives, family)), 3.0)
    finally:
        for each in family:
            os.kill(each.pid, signal.SIGKILL)
