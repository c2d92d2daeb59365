"""One library at work in a process of its own: `python -m benchmarks.worker <peer> <setting as JSON>`.

Reads one order a line, does it and answers with a line of JSON; so several libraries take turns on one machine while
each has its own memory.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import Setting


def main() -> None:
    """Answer orders until there are no more."""
    peer, options = sys.argv[1], json.loads(sys.argv[2])
    if "images" in options:
        options["images"] = torch.load(options["images"], weights_only=True)
    task = import_module(f"benchmarks.peers.{peer}").Task(Setting(**options))
    task.train_step()
    wait()
    answer({"torch": torch.__version__})
    for line in sys.stdin:
        order, *arguments = json.loads(line)
        answer(ORDERS[order](task, *arguments))


def train(task: Any, steps: int) -> dict[str, float]:
    """Return the seconds of a step."""
    began = time.perf_counter()
    for _ in range(steps):
        task.train_step()
    wait()
    return {"seconds": (time.perf_counter() - began) / steps}


def train_for(task: Any, seconds: float) -> dict[str, float]:
    """Train for so long; return the steps taken."""
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        task.train_step()
        steps += 1
    wait()
    return {"steps": steps}


def sample(task: Any, count: int, steps: int) -> dict[str, float]:
    """Return the seconds of a step of DDIM with so many images at a time."""
    began = time.perf_counter()
    task.sample(count, steps)
    return {"seconds": (time.perf_counter() - began) / steps}


def draw(task: Any, count: int, batch: int, steps: int, file: str) -> dict[str, float]:
    """Write images to a file."""
    images = torch.cat([task.sample(min(batch, count - start), steps) for start in range(0, count, batch)])
    Path(file).write_bytes(images.numpy().tobytes())
    return {"images": len(images)}


def peak(_: Any) -> dict[str, float]:
    """Return the most memory that there was so far, in MB: of the GPU, or of the process."""
    if torch.cuda.is_available():
        return {"megabytes": torch.cuda.max_memory_allocated() / 2**20}
    return {"megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def wait() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def answer(content: dict[str, Any]) -> None:
    """Write a line of JSON."""
    print(json.dumps(content), flush=True)


ORDERS: dict[str, Callable[..., dict[str, float]]] = {
    "train": train,
    "train_for": train_for,
    "sample": sample,
    "draw": draw,
    "peak": peak,
}

if __name__ == "__main__":
    main()
