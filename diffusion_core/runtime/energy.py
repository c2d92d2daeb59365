"""Energy by the counters of the hardware: RAPL of a processor (Linux's powercap) and NVML of NVIDIA's GPUs.

They count all that runs on the hardware. Many systems let only root read RAPL, and NVML needs the package
nvidia-ml-py.
"""

import logging
import math
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import Lock, Thread

import torch

logger = logging.getLogger(__name__)

POWERCAP = Path("/sys/class/powercap")
# Seconds between two reads. RAPL's counters wrap at 65 kJ or more, which takes longer.
SECONDS = 60.0


@dataclass(frozen=True)
class Counter:
    """A counter of joules.

    Attributes:
        read: returns its value; raises OSError or ValueError where it cannot be read.
        wraps_at: the value at which it begins at 0 again.
    """

    read: Callable[[], float]
    wraps_at: float = math.inf


class EnergyMeter:
    """Adds up energy from now on; a thread reads it more often than a counter wraps, as long as the meter is used.

    Args:
        counters: the counters.
        spent: joules before.
    """

    def __init__(self, counters: Sequence[Counter], spent: float = 0.0) -> None:
        self._counters = counters
        self._spent = spent
        self._lock = Lock()
        self._last = self._read()
        if any(math.isfinite(each.wraps_at) for each in self._counters):
            Thread(target=_keep_reading, args=(weakref.ref(self),), name="energy", daemon=True).start()

    @property
    def joules(self) -> float | None:
        """Joules so far, or None without counters or after one could not be read: the sum would be too small."""
        with self._lock:
            values = self._read()
            for counter, before, now in zip(self._counters, self._last, values, strict=True):
                self._spent += now - before if now >= before else now - before + counter.wraps_at
            self._last = values
            return self._spent if self._counters else None

    def _read(self) -> list[float]:
        try:
            return [each.read() for each in self._counters]
        except (OSError, ValueError) as error:
            logger.warning("energy is not counted any more, because a counter cannot be read: %s", error)
            self._counters, self._last = [], []
            return []


def _keep_reading(meter: weakref.ref[EnergyMeter]) -> None:
    """Read a meter until nothing else uses it or it has no counters."""
    while True:
        time.sleep(SECONDS)
        used = meter()
        if used is None or used.joules is None:
            return
        del used


def counters(device: torch.device, count: int = 1) -> list[Counter]:
    """Return the counters that this process may read.

    Args:
        device: what computes; a GPU's counter joins that of the processor.
        count: number of GPUs of this machine that compute.
    """
    return [*_packages(), *(_gpus(device, count) if device.type == "cuda" else [])]


def _packages() -> list[Counter]:
    """Return a counter for each processor package."""
    found = []
    for package in sorted(POWERCAP.glob("intel-rapl:[0-9]*")):
        # Those with a second colon are parts of a package.
        if package.name.count(":") == 1:
            try:
                read, wraps_at = _microjoules(package / "energy_uj"), _microjoules(package / "max_energy_range_uj")()
                read()
            except (OSError, ValueError):
                continue
            found.append(Counter(read, wraps_at))
    return found


def _microjoules(file: Path) -> Callable[[], float]:
    return lambda: int(file.read_text(encoding="ascii")) / 1e6


def _gpus(device: torch.device, count: int) -> list[Counter]:
    if find_spec("pynvml") is None:
        return []
    import pynvml

    first = device.index or 0
    try:
        pynvml.nvmlInit()
        handles = [
            pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}".encode())
            for index in (range(count) if count > 1 else range(first, first + 1))
        ]
        found = [Counter(_millijoules(handle)) for handle in handles]
        for each in found:
            each.read()
    except (pynvml.NVMLError, OSError, AssertionError):
        # Older GPUs count none, and several machines share the processes.
        return []
    return found


def _millijoules(handle: object) -> Callable[[], float]:
    import pynvml

    def read() -> float:
        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000.0
        except pynvml.NVMLError as error:
            raise OSError(f"NVML says: {error}") from None

    return read
