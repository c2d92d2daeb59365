"""What was measured on a device: a table at the end, and a file after each row, because a run may be cut off."""

import json
import math
import os
import platform
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Row:
    """One promise.

    Attributes:
        name: what was measured.
        measured: the value, or None where the test could not measure it.
        limit: the greatest value that passes, or the least where `least`.
        passed: the verdict.
        seconds: that it took, with what came before it in its test.
        note: what else is to be known.
        test: the test it belongs to.
        least: whether the limit is one from below.
    """

    name: str
    measured: float | None
    limit: float | None
    passed: bool
    seconds: float
    note: str
    test: str
    least: bool = False

    def cells(self) -> tuple[str, ...]:
        measured, limit = ("-" if each is None else f"{each:.3g}" for each in (self.measured, self.limit))
        sign = ">=" if self.least else "<="
        verdict = "passed" if self.passed else "FAILED"
        return self.name, measured, f"{sign} {limit}", verdict, f"{self.seconds:.1f}", self.note


@dataclass
class Record:
    """The rows of a run.

    Attributes:
        device: that is checked.
        rows: so far.
        skipped: reasons by test.
    """

    device: torch.device | None
    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self.write(finished=False)

    def failed(self, test: str) -> list[Row]:
        return [row for row in self.rows if row.test == test and not row.passed]

    def write(self, finished: bool) -> None:
        """Write the file anew; `finished` tells a whole run from one that was cut off."""
        content = {
            **machine(self.device),
            "finished": finished,
            "seconds": round(time.monotonic() - self.began, 1),
            "passed": sum(row.passed for row in self.rows),
            "failed": sum(not row.passed for row in self.rows),
            "skipped": self.skipped,
            "rows": [_plain(asdict(row)) for row in self.rows],
        }
        for path in paths():
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def table(self) -> list[str]:
        """Return the lines of the table."""
        lines = [("measured", "value", "limit", "verdict", "seconds", "note"), *(row.cells() for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        ]


def paths() -> list[Path]:
    """Return where the file goes: GPU_CHECK_JSON or here, and the folder OUT where there is one."""
    found = [Path(os.environ.get("GPU_CHECK_JSON", "gpu-check.json"))]
    if folder := os.environ.get("OUT"):
        found.append(Path(folder, "gpu-check.json"))
    return found


def machine(device: torch.device | None) -> dict[str, Any]:
    """Return the device and the versions that its numbers depend on."""
    gpu = device is not None and device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else platform.machine(),
        "kind": None if device is None else device.type,
        "capability": ".".join(map(str, torch.cuda.get_device_capability(device))) if gpu else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if gpu else None,
        "triton": _version("triton"),
        "python": platform.python_version(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no infinity and nothing that is no number."""
    return {
        name: str(each) if isinstance(each, float) and not math.isfinite(each) else each for name, each in row.items()
    }
