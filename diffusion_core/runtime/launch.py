"""Starts several processes of one stage on this machine, with torchrun's environment variables.

They stay in this process's group, so that stopping the group stops all of them. Processes of torchrun would outlive a
killed flow, because each has its own session.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from diffusion_core.runtime.device import cores

# Seconds from TERM to KILL, to write a checkpoint.
GRACE_SECONDS = 20.0

# Exit codes of a training process that TERM or INT stopped.
STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGINT)


def launch(arguments: Sequence[str], count: int) -> int:
    """Run `python -m diffusion_core` with these arguments in `count` processes.

    If one fails, the others get TERM, and KILL after `GRACE_SECONDS`. TERM and INT are forwarded to all processes.

    Returns:
        The exit code of the first process that failed, 128 + signal for a signal; 0 if none failed.
    """
    children: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        asked.append(number)
        for child in children:
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        shared = {**os.environ, **_variables(count)}
        for rank in map(str, range(count)):
            command = [sys.executable, "-m", "diffusion_core", *arguments]
            children.append(subprocess.Popen(command, env={**shared, "RANK": rank, "LOCAL_RANK": rank}))
        return _wait(children, asked)
    finally:
        for child in children:
            child.kill()
            child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _variables(count: int) -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    defaults = {
        # Otherwise each process would use all cores.
        "OMP_NUM_THREADS": str(max(1, cores() // count)),
        "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
    }
    return {
        **{name: value for name, value in defaults.items() if name not in os.environ},
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }


def _wait(children: Sequence[subprocess.Popen[bytes]], asked: Sequence[int]) -> int:
    """Wait until all have ended; return the exit code of the first that failed, 128 + signal for a signal.

    Without a failure there is no deadline: after TERM or INT, each process first writes its checkpoint.
    """
    failure: int | None = None
    deadline = float("inf")
    while any(child.poll() is None for child in children) and time.monotonic() < deadline:
        failed = next((child.returncode for child in children if child.returncode), None)
        if failed is not None and failed not in STOPPED and not asked and failure is None:
            failure, deadline = failed, time.monotonic() + GRACE_SECONDS
            for child in children:
                child.terminate()
        time.sleep(0.05)
    if failure is None:
        failure = next((child.returncode for child in children if child.returncode), 0)
    return 128 - failure if failure < 0 else failure
