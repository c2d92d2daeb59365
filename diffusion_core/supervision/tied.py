"""Ends processes with their parent, even if that is killed and cannot end them itself.

`python -m diffusion_core.supervision.tied PARENT COMMAND...` runs a command. Linux signals to it that its parent has
died (prctl PR_SET_PDEATHSIG). Then it ends all that the command has started, which it finds even where the processes in
between have ended (PR_SET_CHILD_SUBREAPER). On other systems the command only runs.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

import psutil

# From prctl(2).
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

_SELF = (sys.executable, "-m", "diffusion_core.supervision.tied")

# Seconds from TERM to KILL, to write a checkpoint.
GRACE_SECONDS = 20.0


def end_with_parent() -> None:
    """Make Linux send TERM to this process when its parent ends, even by KILL."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def tied(command: Sequence[str]) -> list[str]:
    """Return a command that runs `command`, and ends it and all it has started when this process dies."""
    return [*_SELF, str(os.getpid()), *command]


def tie(process: int) -> None:
    """Let a process that runs already end when this one dies."""
    subprocess.Popen([*_SELF, str(os.getpid()), "--end", str(process)], stdin=subprocess.DEVNULL, process_group=0)


def main() -> None:
    """Run the command, and end with its exit code or signal; or watch the process after `--end` until it ends."""
    parent, *command = sys.argv[1:]
    try:
        watched = [psutil.Process(int(command[1]))] if command[0] == "--end" else []
    except psutil.NoSuchProcess:
        return
    ended = False

    def end_orphans(*_: object) -> None:
        # While the parent lives, it signals to the whole group itself.
        nonlocal ended
        if os.getppid() != int(parent) and not ended:
            processes = watched or psutil.Process().children(recursive=True)
            # While the command starts, there may be none; the call below comes after that.
            ended = bool(processes)
            _end(processes)

    signal.signal(signal.SIGTERM, end_orphans)
    # A handler, because the command would inherit SIG_IGN.
    signal.signal(signal.SIGINT, lambda *_: None)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    end_with_parent()
    child = None if watched else subprocess.Popen(command)
    # The parent may have died before Linux was asked, or while the command started.
    end_orphans()
    if child is None:
        psutil.wait_procs(watched)
        return
    code = child.wait()
    if code < 0:
        with suppress(OSError):  # KILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def _end(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, GRACE_SECONDS)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


if __name__ == "__main__":
    main()
