"""Runs one library in its own process: `python -m benchmarks.worker <peer> <setting as JSON>`.

It reads one command per line and answers with a line of JSON, so that several libraries can alternate on one machine
with separate memory. The first answer, before any command, describes the machine or names a missing package.
"""

import json
import logging
import resource
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from benchmarks.machine import describe
from benchmarks.peak import matrix_rate
from benchmarks.peers import Setting


def main() -> None:
    """Run commands until standard input ends."""
    # Warnings are reported, because a library that warns may run slower than usual.
    logging.basicConfig(format="warning: %(message)s")
    peer, options = sys.argv[1], json.loads(sys.argv[2])
    try:
        module = import_module(f"benchmarks.peers.{peer}")
    except ImportError as error:
        # For this project, a missing package is an error.
        if peer == "ours":
            raise
        answer({"missing": str(error)})
        return
    if "images" in options:
        options["images"] = torch.load(options["images"], weights_only=True)
    task = module.Task(Setting(**options))
    answer({"machine": describe()})
    for line in sys.stdin:
        order, *arguments = json.loads(line)
        answer(ORDERS[order](task, *arguments))


def train(task: Any, steps: int) -> dict[str, float]:
    """Return the seconds per training step."""
    began = time.perf_counter()
    for _ in range(steps):
        task.train_step()
    wait()
    return {"seconds": (time.perf_counter() - began) / steps}


def train_for(task: Any, seconds: float) -> dict[str, float]:
    """Train for at least `seconds`; return the number of steps and the seconds."""
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        task.train_step()
        steps += 1
    wait()
    return {"steps": steps, "seconds": time.perf_counter() - began}


def sample(task: Any, count: int, steps: int) -> dict[str, float]:
    """Return the seconds per DDIM step with a batch of `count` images."""
    began = time.perf_counter()
    task.sample(count, steps)
    return {"seconds": (time.perf_counter() - began) / steps}


def sample_to(task: Any, file: str, count: int, batch: int, steps: int) -> dict[str, float]:
    """Sample images and write them to a file, uint8 (count, C, H, W)."""
    images = torch.cat([task.sample(min(batch, count - start), steps) for start in range(0, count, batch)])
    torch.save(images, file)
    return {"images": len(images)}


def noise_error(task: Any, file: str, batch: int) -> dict[str, float]:
    """Return the mean squared error of the predicted noise for a file's images, at evenly spaced timesteps."""
    images = torch.load(file, weights_only=True)
    times = torch.arange(len(images)) * task.timesteps // len(images)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    total = 0.0
    for parts in zip(images.split(batch), times.split(batch), noise.split(batch), strict=True):
        pixels, t, added = (part.to(task.setting.device) for part in parts)
        predicted = task.predict_noise(pixels.float() / 255.0, t, added)
        total += float((predicted - added).square().flatten(1).mean(1).double().sum())
    return {"error": total / len(images)}


def flop(task: Any) -> dict[str, float]:
    """Return the floating-point operations of a training step per image."""
    return {"flop_per_image": task.flop_per_image()}


def rate(task: Any, size: int) -> dict[str, float]:
    """Return the floating-point operations per second in matrix products."""
    return {"flop_per_second": matrix_rate(size, task.setting.device)}


def peak_memory(_: Any) -> dict[str, float]:
    """Return the peak memory so far in MB, of the GPU or of the process."""
    if torch.cuda.is_available():
        return {"megabytes": torch.cuda.max_memory_allocated() / 2**20}
    return {"megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def wait() -> None:
    """Synchronise with the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def answer(content: dict[str, Any]) -> None:
    """Write a line of JSON."""
    print(json.dumps(content), flush=True)


ORDERS: dict[str, Callable[..., dict[str, float]]] = {
    "train": train,
    "train_for": train_for,
    "sample": sample,
    "sample_to": sample_to,
    "noise_error": noise_error,
    "flop": flop,
    "matrix_rate": rate,
    "peak_memory": peak_memory,
}

if __name__ == "__main__":
    main()
