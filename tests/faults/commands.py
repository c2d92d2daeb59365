"""Real processes of this project's command."""

import os
import signal
import subprocess
import sys
import time

# Lets a program kill itself when it reaches a place in the code: DIE_AT="module:function:call".
DIES = """
import importlib, os, signal, sys

def dies(place):
    module, name, call = place.split(":")
    owner = importlib.import_module(module)
    *path, last = name.split(".")
    for each in path:
        owner = getattr(owner, each)
    function, calls = getattr(owner, last), [0]

    def counted(*arguments, **options):
        calls[0] += 1
        if calls[0] == int(call):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    setattr(owner, last, counted)

dies(sys.argv.pop(1))
from diffusion_core.__main__ import main
main()
"""


def command(*arguments, die_at=None):
    """Return a command of this project, which kills itself at the call of a function where `die_at` names one."""
    if die_at is None:
        return [sys.executable, "-m", "diffusion_core", *arguments]
    return [sys.executable, "-c", DIES, die_at, *arguments]


def run(folder, *arguments, die_at=None, **variables):
    """Run a command to its end in a folder."""
    return subprocess.run(
        command(*arguments, die_at=die_at),
        cwd=folder,
        env={**os.environ, "DIFFUSION_DEVICE": "cpu", "DIFFUSION_PRECISION": "float32", **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


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
