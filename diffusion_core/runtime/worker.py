"""Run `prefect worker start` with the options given, and stop it in good order.

    python -m diffusion_core.runtime.worker --pool POOL

On TERM, Prefect's worker leaves within a second and tells its flow runs nothing. In a container they would then be
killed: no checkpoint, and runs that Prefect takes for running. So the flow runs are stopped first, and the worker
waits.
"""

import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import FrameType

import psutil

# Below stop_grace_period in docker/compose.yaml, and above what a flow gives its stage.
STOP_SECONDS = 45.0


def runs_still(process: psutil.Process) -> bool:
    """Whether a process has not ended; who is dead and only waits to be counted has."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def stop_flow_runs(worker: psutil.Process, seconds: float) -> None:
    """Tell each flow run once, also those that start meanwhile, and wait until none is left."""
    told: set[psutil.Process] = set()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        runs = {run for run in worker.children() if runs_still(run)}
        if not runs:
            return
        for run in runs - told:
            with suppress(psutil.NoSuchProcess):
                run.terminate()
        told |= runs
        time.sleep(0.2)


def main() -> None:
    """Run the worker to its end, and leave with its code."""
    # A group of its own: what reaches this process shall not reach the worker past it.
    command = [sys.executable, "-m", "prefect", "worker", "start", *sys.argv[1:]]
    worker = subprocess.Popen(command, start_new_session=True)

    def leave(_number: int, _frame: FrameType | None) -> None:
        # Once is enough.
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
