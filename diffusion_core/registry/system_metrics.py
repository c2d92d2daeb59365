"""Use of processor, memory and GPU during a run, measured as MLflow measures it."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from mlflow.environment_variables import MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

logger = logging.getLogger(__name__)

SECONDS = 10.0
# What a training is slowed by. Each of MLflow's others would be one more chart on its pages.
KEPT = ("utilization_percentage", "memory_usage_megabytes", "power_usage_watts")


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
    monitors: list[Any] = [CPUMonitor()]  # type: ignore[no-untyped-call]
    # Without an NVIDIA GPU or its library, MLflow raises one of many errors.
    with suppress(Exception):
        monitors.append(GPUMonitor())  # type: ignore[no-untyped-call]
    while True:
        for monitor in monitors:
            monitor.collect_metrics()
        if stopped.wait(seconds):
            return
        found = (pair for each in monitors for pair in each.aggregate_metrics().items())
        values = {f"system/{name}": value for name, value in found if name.endswith(KEPT)}
        try:
            take(values, step)
        except OSError as error:
            # The training meets the same disk, and ends with its sentence.
            logger.warning("the use of this machine is no longer recorded (%s)", error)
            return
        step += 1
        for monitor in monitors:
            monitor.clear_metrics()
