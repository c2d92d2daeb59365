"""Speed and memory of `ingest` and `prepare`, beside a bare loop of Pillow and beside Hugging Face's `datasets`.

    python -m benchmarks.images cifar10-train.zip [--datasets PYTHON]

The zip file has one folder a class. Each measurement is a process of its own, and repeats are interleaved. PYTHON is an
interpreter that has `datasets`; without it that row is left out. Results are written to benchmarks/images.json.
"""

import argparse
import io
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from PIL import Image
from skimage import data

from benchmarks.machine import describe

RESULTS = Path("benchmarks/images.json")
REPEATS = 3
NEW = 500
# Large pictures, as cameras make them.
LARGE, WIDTH, HEIGHT = 400, 1500, 1000
SAMPLE_SECONDS = 0.1

OURS = """
import sys
from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import IngestSettings, PrepareSettings
from diffusion_core.stages import ingest, prepare
kind, path, size = sys.argv[1:]
ingest.run(IngestSettings.model_validate({"source": {"kind": kind, "path": path}}), Environment())
prepare.run(PrepareSettings(image_size=int(size), color="rgb"))
"""
PILLOW = """
import sys
from pathlib import Path
from PIL import Image
folder, size = sys.argv[1:]
for file in sorted(Path(folder).rglob("*.jpg")):
    with Image.open(file) as image:
        image.convert("RGB").resize((int(size), int(size)), Image.Resampling.BICUBIC)
"""
DATASETS = """
import os, sys
import numpy as np
from datasets import load_dataset
folder, size = sys.argv[1:]
made = load_dataset("imagefolder", data_dir=folder, split="train", cache_dir="cache")
def pixels(row):
    return {"pixels": np.asarray(row["image"].convert("RGB").resize((int(size), int(size))))}
made = made.map(pixels, remove_columns=["image"], num_proc=os.cpu_count())
print(len(made))
"""


@dataclass
class Cost:
    """What a process and its children took."""

    seconds: float
    processor_seconds: float
    megabytes: float


def cost(command: list[str], folder: Path) -> Cost:
    """Run a command in a folder and return what it took; memory is the peak of the sum of all its processes."""
    began, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(Path.cwd())})
    watched = psutil.Process(process.pid)
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        peak = max(peak, _memory(watched))
        time.sleep(SAMPLE_SECONDS)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return Cost(time.perf_counter() - began, usage.ru_utime + usage.ru_stime, peak / 1e6)


def _memory(process: psutil.Process) -> int:
    total = 0
    for each in (process, *process.children(recursive=True)):
        try:
            total += each.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def ours(project: Path, kind: str, path: Path, size: int) -> Cost:
    """Return what ingest and prepare take."""
    project.mkdir(exist_ok=True)
    return cost([sys.executable, "-c", OURS, kind, str(path), str(size)], project)


def with_new(archive: Path, target: Path, count: int) -> None:
    """Write a copy of a zip file that has more images: those of the first class, each with one pixel changed."""
    shutil.copyfile(archive, target)
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "a") as made:
        for name in source.namelist()[:count]:
            with Image.open(io.BytesIO(source.read(name))) as image:
                changed = image.convert("RGB")
            changed.putpixel((0, 0), (255, 0, 0))
            file = io.BytesIO()
            changed.save(file, "JPEG", quality=90)
            made.writestr(f"{Path(name).parent}/new-{Path(name).name}", file.getvalue())


def large_pictures(folder: Path) -> None:
    """Write large JPEGs: parts of a photograph, enlarged."""
    photograph = Image.fromarray(data.astronaut())  # type: ignore[no-untyped-call]
    choose = random.Random(0)
    for number in range(LARGE):
        left, top = choose.randrange(100), choose.randrange(200)
        file = folder / str(number % 2) / f"{number:04d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        photograph.resize((WIDTH, HEIGHT), box=(left, top, left + 412, top + 275)).save(file, quality=90)


def measure(archive: Path, datasets: str | None, folder: Path) -> dict[str, Any]:
    """Return all costs, by name, of each repeat."""
    unpacked, large, more = folder / "unpacked", folder / "large", folder / "more.zip"
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(unpacked)
    large_pictures(large)
    with_new(archive, more, NEW)
    found: dict[str, list[Cost]] = {}
    for repeat in range(REPEATS):
        project = folder / f"project-{repeat}"
        found.setdefault("all of it", []).append(ours(project, "zip", archive, 32))
        found.setdefault("nothing new", []).append(ours(project, "zip", archive, 32))
        found.setdefault("500 new", []).append(ours(project, "zip", more, 32))
        loop = [sys.executable, "-c", PILLOW, str(unpacked), "32"]
        found.setdefault("a loop of Pillow", []).append(cost(loop, folder))
        found.setdefault("large JPEGs", []).append(ours(folder / f"large-{repeat}", "folder", large, 64))
        loop = [sys.executable, "-c", PILLOW, str(large), "64"]
        found.setdefault("large JPEGs by a loop of Pillow", []).append(cost(loop, folder))
        if datasets is not None:
            place = folder / f"datasets-{repeat}"
            place.mkdir()
            command = [datasets, "-c", DATASETS, str(unpacked), "32"]
            found.setdefault("datasets", []).append(cost(command, place))
    return {name: [asdict(each) for each in costs] for name, costs in found.items()}


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser("python -m benchmarks.images", description=__doc__)
    parser.add_argument("archive", type=Path, help="a zip file of images of 32 x 32 pixels, one folder a class")
    parser.add_argument("--datasets", metavar="PYTHON", help="an interpreter that has Hugging Face's datasets")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        content = {"machine": describe()} | measure(arguments.archive.resolve(), arguments.datasets, Path(name))
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for row, costs in content.items():
        if row != "machine":
            medians = {key: statistics.median(each[key] for each in costs) for key in costs[0]}
            print(f"{row}: " + ", ".join(f"{value:.1f} {key}" for key, value in medians.items()))


if __name__ == "__main__":
    main()
