"""Run `prefect worker start` with the given options, and stop its flow runs before it.

    python -m diffusion_core.supervision.worker --pool POOL

On TERM, Prefect's worker exits within a second and sends its flow runs no signal. In a container they would then be
killed without a checkpoint, and Prefect would show them as running. So this process stops the flow runs first.
"""

import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import FrameType

import psutil

# Less than stop_grace_period in docker/compose.yaml, and more than the time that a flow gives its stage.
STOP_SECONDS = 45.0


def runs_still(process: psutil.Process) -> bool:
    """Return whether a process has not ended; a zombie has ended."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def stop_flow_runs(worker: psutil.Process, seconds: float) -> None:
    """Send TERM once to each flow run, including new ones, and wait at most `seconds` until all have ended."""
    notified: set[psutil.Process] = set()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        runs = {run for run in worker.children() if runs_still(run)}
        if not runs:
            return
        for run in runs - notified:
            with suppress(psutil.NoSuchProcess):
                run.terminate()
        notified |= runs
        time.sleep(0.2)


def main() -> None:
    """Run the worker until it ends, and exit with its code."""
    # In a session of its own, so that signals to this process's group do not reach the worker directly.
    command = [sys.executable, "-m", "prefect", "worker", "start", *sys.argv[1:]]
    worker = subprocess.Popen(command, start_new_session=True)

    def leave(_number: int, _frame: FrameType | None) -> None:
        # Ignore further signals.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with suppress(psutil.NoSuchProcess):
            stop_flow_runs(psutil.Process(worker.pid), STOP_SECONDS)
        worker.send_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    sys.exit(worker.wait())


if __name__ == "__main__":
    main()
