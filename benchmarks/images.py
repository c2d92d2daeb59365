"""Speed and memory of `ingest` and `prepare`, beside a bare loop of Pillow and beside Hugging Face's `datasets`.

    python -m benchmarks.images ARCHIVE [--datasets PYTHON]

ARCHIVE is a zip file with one folder a class. PYTHON is an interpreter that has `datasets`; without it that row is left
out. Each measurement is a process of its own, and repeats are interleaved. Results are written to
benchmarks/images.json, and the table of their medians to benchmarks/images.md.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from tqdm import tqdm

from benchmarks.machine import describe
from benchmarks.pictures import HEIGHT, LARGE, WIDTH, large_pictures, with_new, write_pictures, write_tiny

CACHE = Path(".cache")
RESULTS, TABLE = Path("benchmarks/images.json"), Path("benchmarks/images.md")
REPEATS = 3
NEW = 500
# The large ones are measured once, because a loop of Pillow takes minutes.
SMALL_SIZE, LARGE_SIZE = 32, 64
# Tiny pictures, for the memory that each one more takes.
TINY = (20_000, 120_000)
SAMPLE_SECONDS = 0.1

INGEST = """
import sys
from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import IngestSettings
from diffusion_core.stages import ingest
kind, path = sys.argv[1:]
ingest.run(IngestSettings.model_validate({"source": {"kind": kind, "path": path}}), Environment())
"""
PREPARE = """
import sys
from diffusion_core.config.settings import PrepareSettings
from diffusion_core.stages import prepare
prepare.run(PrepareSettings(image_size=int(sys.argv[1]), color="rgb"))
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
    process = subprocess.Popen(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(Path.cwd())}, stdout=subprocess.DEVNULL
    )
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
    """Return the bytes of a process and its children; what they share counts once."""
    total = 0
    for each in (process, *process.children(recursive=True)):
        try:
            total += each.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def ours(project: Path, kind: str, path: Path, size: int) -> tuple[Cost, Cost]:
    """Return the cost of ingest and of prepare in a project's folder."""
    project.mkdir(exist_ok=True)
    return (
        cost([sys.executable, "-c", INGEST, kind, str(path)], project),
        cost([sys.executable, "-c", PREPARE, str(size)], project),
    )


def measure(archive: Path, datasets: str | None, folder: Path) -> dict[str, Any]:
    """Return all costs, by name, of each repeat, and sizes."""
    unpacked, large = folder / "unpacked", folder / "large"
    # The source keeps its path when new images come.
    source, more = folder / "images.zip", folder / "more.zip"
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(unpacked)
    large_bytes = write_pictures(large, large_pictures())
    with_new(archive, more, NEW)
    found: dict[str, list[Cost]] = {}

    def add(name: str, *costs: Cost) -> None:
        for stage, each in zip(("ingest", "prepare"), costs, strict=True):
            found.setdefault(f"{name}: {stage}", []).append(each)

    for repeat in tqdm(range(REPEATS), desc="repeats"):
        project = folder / f"project-{repeat}"
        shutil.copyfile(archive, source)
        add("all", *ours(project, "zip", source, SMALL_SIZE))
        sizes = _sizes(project)
        add("nothing new", *ours(project, "zip", source, SMALL_SIZE))
        shutil.copyfile(more, source)
        add("new", *ours(project, "zip", source, SMALL_SIZE))
        shutil.rmtree(project)
        loop = [sys.executable, "-c", PILLOW, str(unpacked), str(SMALL_SIZE)]
        found.setdefault("Pillow", []).append(cost(loop, folder))
        if datasets is not None:
            place = folder / f"datasets-{repeat}"
            place.mkdir()
            command = [datasets, "-c", DATASETS, str(unpacked), str(SMALL_SIZE)]
            found.setdefault("datasets", []).append(cost(command, place))
            shutil.rmtree(place)
    add("large", *ours(folder / "large-project", "folder", large, LARGE_SIZE))
    shutil.rmtree(folder / "large-project")
    found["Pillow, large"] = [cost([sys.executable, "-c", PILLOW, str(large), str(LARGE_SIZE)], folder)]
    for count in TINY:
        write_tiny(folder / "tiny.zip", count)
        add(f"{count} tiny", *ours(folder / "tiny", "zip", folder / "tiny.zip", 8))
        shutil.rmtree(folder / "tiny")
    costs = {name: [asdict(each) for each in costs] for name, costs in found.items()}
    return {"sizes": sizes, "large_bytes": large_bytes, "costs": costs}


def _sizes(project: Path) -> dict[str, int]:
    """Return the bytes of what the stages write."""
    info = json.loads((project / "data/prepared/dataset.json").read_text(encoding="utf-8"))
    kinds = {
        "packs": "raw/*.zip",
        "index": "raw/index.parquet",
        "shards": "prepared/*.npy",
        "manifest": "prepared/man*",
    }
    sizes = {kind: sum(each.stat().st_size for each in (project / "data").glob(name)) for kind, name in kinds.items()}
    return {"images": info["count"], **sizes}


def table(content: dict[str, Any]) -> str:
    """Return the table of the medians, in Markdown."""
    costs = content["costs"]

    def median(key: str, *names: str) -> float:
        return float(sum(statistics.median(each[key] for each in costs[name]) for name in names))

    def both(name: str) -> tuple[str, str]:
        return f"{name}: ingest", f"{name}: prepare"

    def most(names: Sequence[str]) -> float:
        return max(median("megabytes", name) for name in names)

    count = content["sizes"]["images"]
    rows = [
        (f"{count:,} JPEGs of {SMALL_SIZE} x {SMALL_SIZE} in a zip file", both("all"), "45 s, 1 GB"),
        ("the same again, nothing new: DVC runs `ingest` alone", ("nothing new: ingest",), "3 s"),
        (f"{NEW} new ones", both("new"), "5 s"),
        (f"{LARGE:,} JPEGs of {WIDTH:,} x {HEIGHT:,}", both("large"), "1.5 GB"),
        ("Pillow: the small ones", ("Pillow",), ""),
        ("Pillow: the large ones", ("Pillow, large",), ""),
        *([("`datasets`: the small ones", ("datasets",), "")] if "datasets" in costs else []),
    ]
    machine = content["machine"]
    lines = [
        f"Measured on {machine['device']}, {machine['cores']} cores, Python {machine['python']}.",
        "",
        "| what | seconds | of these, ingest | processor seconds | memory, MB | wanted |",
        "|---|---|---|---|---|---|",
    ]
    for what, names, wanted in rows:
        first = f"{median('seconds', names[0]):.1f}" if len(names) > 1 else ""
        whole, processor = median("seconds", *names), median("processor_seconds", *names)
        lines.append(f"| {what} | {whole:.1f} | {first} | {processor:.1f} | {most(names):,.0f} | {wanted} |")
    ratios = [
        ("small JPEGs a processor second, beside a loop of Pillow", "processor_seconds", "Pillow", both("all"), 0.7),
        ("the same, `prepare` alone", "processor_seconds", "Pillow", both("all")[1:], ""),
        ("large JPEGs a processor second, beside it", "processor_seconds", "Pillow, large", both("large"), 3.0),
        *([("speed beside `datasets`", "seconds", "datasets", both("all"), 5.0)] if "datasets" in costs else []),
    ]
    lines += ["", "| ratio | measured | wanted |", "|---|---|---|"]
    for what, key, peer, names, wanted_ratio in ratios:
        lines.append(f"| {what} | {median(key, peer) / median(key, *names):.2f} | {wanted_ratio} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser("python -m benchmarks.images", description=__doc__)
    parser.add_argument("archive", type=Path, help="a zip file of images of 32 x 32 pixels, one folder a class")
    parser.add_argument("--datasets", metavar="PYTHON", help="an interpreter that has Hugging Face's datasets")
    arguments = parser.parse_args()
    # Its link to the interpreter of the system stays, because that has no libraries.
    datasets = arguments.datasets and str(Path(arguments.datasets).absolute())
    # Below the project, because /tmp may be in memory.
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        measured = measure(arguments.archive.resolve(), datasets, Path(name).resolve())
    content = {"machine": describe(), **measured}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    TABLE.write_text(table(content), encoding="utf-8")
    print(table(content))


if __name__ == "__main__":
    main()
