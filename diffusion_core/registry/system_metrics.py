"""Use of processor, memory, disk, network and GPU during a run, measured as MLflow measures it."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from mlflow.environment_variables import MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

logger = logging.getLogger(__name__)

SECONDS = 10.0


@contextmanager
def system_metrics(take: Callable[[Mapping[str, float], int], None], first: int = 0) -> Iterator[None]:
    """Call `take(values, step)` about every ten seconds of the block, from a thread; steps count from `first`.

    MLflow's own monitor speaks to the store, and would wait for it.
    """
    stopped = threading.Event()
    seconds = MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get() or SECONDS  # type: ignore[no-untyped-call]
    thread = threading.Thread(target=_measure, args=(stopped, seconds, take, first), name="system metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _measure(
    stopped: threading.Event, seconds: float, take: Callable[[Mapping[str, float], int], None], step: int
) -> None:
    monitors: list[Any] = [each() for each in (CPUMonitor, DiskMonitor, NetworkMonitor)]
    # Without an NVIDIA GPU or its library, MLflow raises one of many errors.
    with suppress(Exception):
        monitors.append(GPUMonitor())  # type: ignore[no-untyped-call]
    while True:
        for monitor in monitors:
            monitor.collect_metrics()
        if stopped.wait(seconds):
            return
        values = {f"system/{name}": value for each in monitors for name, value in each.aggregate_metrics().items()}
        try:
            take(values, step)
        except OSError as error:
            # The training meets the same disk, and ends with its sentence.
            logger.warning("the use of this machine is no longer recorded (%s)", error)
            return
        step += 1
        for monitor in monitors:
            monitor.clear_metrics()
