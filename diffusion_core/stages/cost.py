"""What stages cost on this machine: time and energy, beside the hash of the output that they made."""

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch

from diffusion_core.documents import read_json
from diffusion_core.files import sha256_of, write_whole
from diffusion_core.runtime.energy import EnergyMeter, counters

logger = logging.getLogger(__name__)

SECONDS = Path(".cache/seconds")
JOULES_PER_KWH = 3.6e6


class Cost:
    """Counts what a stage costs from now on.

    Args:
        device: what computes.
        processes: number of processes, each with a device.
        earlier: what is `spent` of the same work already.
    """

    def __init__(
        self, device: torch.device, processes: int = 1, earlier: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        self._processes = processes
        self._earlier = {name: float(earlier.get(name, 0.0)) for name in ("seconds", "device_seconds", "joules")}
        self._began = time.monotonic()
        # Earlier work whose energy is not known makes that of the whole unknown.
        is_known = "joules" in earlier or not self._earlier["seconds"]
        self._energy = EnergyMeter(counters(device, processes) if is_known else [], self._earlier["joules"])

    @property
    def spent(self) -> dict[str, float]:
        """The seconds of the work, those of all its devices, and joules where they are counted."""
        seconds, joules = time.monotonic() - self._began, self._energy.joules
        found = {
            "seconds": self._earlier["seconds"] + seconds,
            "device_seconds": self._earlier["device_seconds"] + seconds * self._processes,
        }
        return found if joules is None else found | {"joules": joules}

    def left(self, minutes: float | None) -> float:
        """Return the seconds that are left of these minutes, at least 0; infinite without a limit."""
        passed = self._earlier["seconds"] + time.monotonic() - self._began
        return math.inf if minutes is None else max(0.0, 60.0 * minutes - passed)


def record_cost(stage: str, output: Path, cost: Cost) -> None:
    """Record what a stage took to make a file; warn if the disk refuses, because the output is there."""
    content = json.dumps({"sha256": sha256_of(output), **cost.spent}) + "\n"
    try:
        SECONDS.mkdir(parents=True, exist_ok=True)
        write_whole(SECONDS / f"{stage}.json", content)
    except OSError as error:
        logger.warning("the time of %s is not recorded: %s", stage, error)


def seconds_of(stage: str, output: Path) -> float | None:
    """Return how long a stage took to make a file, or None if this machine did not make it."""
    return _recorded(stage, output).get("seconds")


def cost_metrics(stage: str, output: Path) -> dict[str, float]:
    """Return what a stage took to make a file, as metrics of a run; nothing if this machine did not make it."""
    return as_metrics(stage, _recorded(stage, output))


def as_metrics(stage: str, spent: Mapping[str, float]) -> dict[str, float]:
    """Return what a stage took as metrics of a run: `cost/train_device_hours`, `cost/train_energy_kwh`."""
    units = {"device_seconds": ("device_hours", 3600.0), "joules": ("energy_kwh", JOULES_PER_KWH)}
    return {f"cost/{stage}_{name}": spent[key] / unit for key, (name, unit) in units.items() if key in spent}


def _recorded(stage: str, output: Path) -> dict[str, float]:
    try:
        recorded = read_json(SECONDS / f"{stage}.json")
        if recorded.pop("sha256") != sha256_of(output):
            return {}
        return {name: float(value) for name, value in recorded.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
