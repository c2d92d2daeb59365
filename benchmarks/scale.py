"""Sizes, times and costs of datasets that were not tried, computed from rates that were measured: docs/scale.md.

    python -m benchmarks.scale

It reads benchmarks/images.json and compare-gpu.json, and prints the table.
"""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.images import LARGE_SIZE, TINY
from benchmarks.pictures import LARGE

FOLDER = Path("benchmarks")
COUNTS = {"1 million": 10**6, "100 million": 10**8, "10 billion": 10**10}
# Images that a training sees.
SEEN = {"1 million": 10**8, "100 million": 10**9, "10 billion": 10**10}
# In dollars: assumptions, of the order of public prices.
CORE_HOUR, GPU_HOUR, GIGABYTE_MONTH = 0.05, 3.5, 0.023
HOUR = 3600
PIXELS = LARGE_SIZE * LARGE_SIZE * 3


def rates() -> dict[str, float]:
    """Return what was measured, in SI units."""
    images, gpu = (
        json.loads((FOLDER / name).read_text(encoding="utf-8")) for name in ("images.json", "compare-gpu.json")
    )

    def median(name: str, key: str) -> float:
        return float(statistics.median(each[key] for each in images["costs"][name]))

    def memory_of_one(stage: str) -> float:
        few, many = TINY
        more = median(f"{many} tiny: {stage}", "megabytes") - median(f"{few} tiny: {stage}", "megabytes")
        return more * 1e6 / (many - few)

    (training,) = (each for each in gpu["training"]["networks"] if each["setting"]["size"] == LARGE_SIZE)
    sizes = images["sizes"]
    return {
        "bytes of a file": images["large_bytes"],
        "bytes of its rows": (sizes["index"] + sizes["manifest"]) / sizes["images"],
        "files ingested a second": LARGE / median("large: ingest", "seconds"),
        "files prepared a processor second": LARGE / median("large: prepare", "processor_seconds"),
        "memory of an item": memory_of_one("ingest"),
        "memory of a row": memory_of_one("prepare"),
        "images trained a second": training["setting"]["batch"] / statistics.median(training["train_seconds"]["ours"]),
    }


def table(rate: dict[str, float]) -> str:
    """Return the table in Markdown."""

    def row(what: str, value: Callable[[int, int], str]) -> str:
        return f"| {what} | " + " | ".join(value(COUNTS[name], SEEN[name]) for name in COUNTS) + " |"

    def core_hours(count: int) -> float:
        return count / rate["files prepared a processor second"] / HOUR

    def gpu_hours(seen: int) -> float:
        return seen / rate["images trained a second"] / HOUR

    def stored(count: int) -> float:
        return count * (rate["bytes of a file"] + PIXELS + rate["bytes of its rows"])

    lines = [
        f"| | {' | '.join(f'{name} images' for name in COUNTS)} |",
        f"|---|{'---|' * len(COUNTS)}",
        row("files", lambda count, _: _bytes(count * rate["bytes of a file"])),
        row(f"pixels of {LARGE_SIZE} x {LARGE_SIZE}", lambda count, _: _bytes(count * PIXELS)),
        row("index and manifest", lambda count, _: _bytes(count * rate["bytes of its rows"])),
        row("memory of `ingest`", lambda count, _: _bytes(count * rate["memory of an item"])),
        row("memory of `prepare`", lambda count, _: _bytes(count * rate["memory of a row"])),
        row("`ingest` by one process", lambda count, _: _hours(count / rate["files ingested a second"] / HOUR)),
        row("`prepare`, core-hours", lambda count, _: _number(core_hours(count))),
        row("images that a training sees", lambda _, seen: _number(seen)),
        row("training, hours of one GPU", lambda _, seen: _number(gpu_hours(seen))),
        row(
            "storage, dollars a month",
            lambda count, _: _number(stored(count) / 1e9 * GIGABYTE_MONTH),
        ),
        row("`prepare`, dollars", lambda count, _: _number(core_hours(count) * CORE_HOUR)),
        row("training, dollars", lambda _, seen: _number(gpu_hours(seen) * GPU_HOUR)),
    ]
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    """Return two digits, as a person would write them."""
    digits = 1 - int(np.floor(np.log10(value))) if value else 0
    return f"{round(value, digits):,.{max(digits, 0)}f}"


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if value < 1000 or unit == "PB":
            break
        value /= 1000
    return f"{_number(value)} {unit}"


def _hours(hours: float) -> str:
    return f"{_number(hours)} h" if hours < 48 else f"{_number(hours / 24)} days"


def main() -> None:
    """Print the rates and the table."""
    measured: dict[str, Any] = rates()
    for what, value in measured.items():
        print(f"{what}: {value:,.0f}")
    print(table(measured))


if __name__ == "__main__":
    main()
