"""Compares this project with denoising-diffusion-pytorch and diffusers: `python -m benchmarks.compare [PART ...]`.

Each library runs in its own process with the same PyTorch. The processes alternate, and ratios are medians over
consecutive measurements, because machines are shared and their speed drifts. Each part adds its results to
benchmarks/compare-<cpu|gpu>.json and updates the table next to it. Only PyTorch is imported, so that a bare GPU machine
suffices; libraries that are not installed are omitted.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.parts import amp, first_step, peak, sampling, self_conditioned, training
from benchmarks.quality import quality
from benchmarks.report import write
from benchmarks.turns import Part, Plan

PARTS: dict[str, Callable[[Part], dict[str, Any]]] = {
    "training": training,
    "self_conditioned": self_conditioned,
    "amp": amp,
    "sampling": sampling,
    "first_step": first_step,
    "peak": peak,
    "quality": quality,
}
GPU_ONLY = ("amp", "peak")
# A part should end within ten minutes. Repeats that would exceed this are dropped; a started one is completed.
SECONDS = 480.0


def make_plan(python: str, gpu: bool, images: Path | None = None) -> Plan:
    """Return the plan for a CPU or GPU, with networks as in the libraries' examples."""
    if gpu:
        small = {"size": 32, "dim": 128, "dim_mults": [1, 2, 2, 2], "batch": 128}
        large = {"size": 64, "dim": 128, "dim_mults": [1, 2, 4], "batch": 128}
        return Plan(python, (small, large), 20, 7, {16: (50, 5), 250: (50, 3)}, gpu=True, images=images)
    network = {"size": 32, "dim": 64, "dim_mults": [1, 2, 4], "batch": 32}
    return Plan(python, (network,), 2, 7, {16: (50, 3), 250: (10, 1)}, images=images)


def measure(name: str, plan: Plan, seconds: float, results: Path) -> None:
    """Measure a part, add its results to those of the other parts in a file, and write the table next to it."""
    part = Part(plan, seconds)
    figures = PARTS[name](part)
    # Read after measuring, so that results that another part wrote meanwhile are kept.
    content = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    content[name] = {**part.notes(), **figures}
    write(content, results)


def finds_gpu(python: str) -> bool:
    """Return whether the PyTorch of an interpreter, which may differ from this one, finds a GPU.

    Raises:
        ValueError: the interpreter cannot be run, or has no PyTorch.
    """
    asked = [python, "-c", "import torch; print(torch.cuda.is_available())"]
    try:
        done = subprocess.run(asked, check=True, capture_output=True, text=True)
    except OSError as error:
        raise ValueError(f"{python} cannot be run ({error.strerror})") from None
    except subprocess.CalledProcessError as error:
        last = error.stderr.strip().splitlines()[-1:]
        raise ValueError(f"{python} cannot import torch ({''.join(last)}): name an interpreter that has it") from None
    return done.stdout.strip() == "True"


def main() -> None:
    """Measure the selected parts, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"all if none is named: {', '.join(PARTS)}")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has the libraries")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time of each part (default: %(default)s)")
    parser.add_argument("--images", type=Path, help="a folder of photographs to measure quality on")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.parts if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}: name some of {', '.join(PARTS)}")
    try:
        gpu = finds_gpu(arguments.python)
    except ValueError as error:
        parser.error(f"--python: {error}")
    if arguments.images is not None and not arguments.images.is_dir():
        parser.error(f"--images: {arguments.images} is not a folder")
    if not gpu and (impossible := [name for name in arguments.parts if name in GPU_ONLY]):
        parser.error(f"{impossible[0]} needs a GPU, which {arguments.python} does not find")
    plan = make_plan(arguments.python, gpu, arguments.images)
    for name in arguments.parts or [name for name in PARTS if gpu or name not in GPU_ONLY]:
        measure(name, plan, arguments.seconds, Path(f"benchmarks/compare-{'gpu' if gpu else 'cpu'}.json"))


if __name__ == "__main__":
    main()
