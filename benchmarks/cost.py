"""Training speed by batch size, image size and width, and fixed costs of a stage: `python -m benchmarks.cost`.

Writes benchmarks/cost.json and docs/images/cost.png. Run it in the project's folder after `make demo`; the fixed costs
are measured with its data and settings.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.machine import describe
from benchmarks.peers import Setting
from benchmarks.peers.ours import Task

RESULTS = Path("benchmarks/cost.json")
PICTURE = Path("docs/images/cost.png")
BASE = {"size": 32, "dim": 64, "batch": 32}
GROWING = {
    "batch": (1, 2, 4, 8, 16, 32, 64, 128),
    "size": (8, 16, 32, 64),
    "dim": (16, 32, 64, 128),
}
UNITS = {"batch": "images a step", "size": "pixels on each side", "dim": "channels of the first level"}
REPEATS = 5


def images_per_second(**changed: int) -> float:
    """Return the training speed in images per second."""
    setting = Setting(**{**BASE, **changed})  # type: ignore[arg-type]
    task = Task(setting)
    for _ in range(2):
        task.train_step()
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        task.train_step()
        taken.append(time.perf_counter() - began)
    return setting.batch / statistics.median(taken)


def fixed_costs() -> dict[str, float]:
    """Return the seconds of each part of the stage `train` with the settings of params.yaml."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("params.yaml", "dvc.yaml"):
            shutil.copy(name, folder)
        shutil.copytree("data/prepared", Path(folder, "data/prepared"))
        variables = {**os.environ, "PYTHONPATH": str(Path.cwd()), "MLFLOW_TRACKING_URI": ""}
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.stage_times"],
            cwd=folder,
            env=variables,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def draw(rates: dict[str, dict[int, float]]) -> Figure:
    """Return a plot of the rates by each varied quantity."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots(1, len(rates), sharey=True)
    for axis, (name, points) in zip(axes, rates.items(), strict=True):
        axis.plot(list(points), list(points.values()), marker="o", color="#2a6f97")
        axis.set(xscale="log", yscale="log", xlabel=UNITS[name])
        axis.set_xticks(list(points), [str(each) for each in points])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    rates_shown = (5, 10, 20, 50, 100, 200, 500)
    axes[0].set_yticks(rates_shown, [str(each) for each in rates_shown])
    axes[0].minorticks_off()
    axes[0].set(ylabel="images a second", ylim=(10, 500))
    return figure


def main() -> None:
    """Measure, print and write the results."""
    content: dict[str, Any] = {"machine": describe(), "base": BASE, "fixed_seconds": fixed_costs()}
    print(content["fixed_seconds"], flush=True)
    rates: dict[str, dict[int, float]] = {}
    for name, values in GROWING.items():
        rates[name] = {value: round(images_per_second(**{name: value}), 2) for value in values}
        print(name, rates[name], flush=True)
    content["images_per_second"] = rates
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draw(rates).savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
