"""Real processes of this project's command.

Most begin as forks of one process, because importing PyTorch and MLflow takes longer than what they do.
"""

import atexit
import os
import signal
import sys
import time
from contextlib import ExitStack
from functools import cache

from tests.faults.forks import VARIABLES, Commands, commands


def command(*arguments):
    """Return a command of this project, for a process that begins anew."""
    return [sys.executable, "-m", "diffusion_core", *arguments]


@cache
def _forks() -> Commands:
    """The commands of this process's tests."""
    held = ExitStack()
    atexit.register(held.close)
    return held.enter_context(commands(lambda program: program))


def run(folder, *arguments, die_at=None, **variables):
    """Run a command to its end in a folder; it kills itself at the call of a function where `die_at` names one."""
    # A test may have set any variable, or removed one, since the process of the forks began.
    environment = {**os.environ, **VARIABLES}
    return _forks().run(*arguments, folder=folder.absolute(), die_at=die_at, environment=environment, **variables)


def succeeds(folder, *arguments, **options):
    done = run(folder, *arguments, **options)
    assert done.returncode == 0, done.stderr
    return done


def is_killed(folder, *arguments, die_at, **options):
    """Run a command that must reach the place at which it dies."""
    done = run(folder, *arguments, die_at=die_at, **options)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    return done


def wait_for(condition, seconds=120.0):
    """Return the first true value of `condition()`."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
    return found
