"""The effect of a busy process on CPU training, with all threads and with the chosen number of threads.

    python -m benchmarks.busy_cpu

Trains alone, then with a process that keeps one core busy, in less than 4 minutes on an otherwise idle machine. Writes
benchmarks/busy_cpu.json.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe
from benchmarks.process_overhead import NETWORKS
from diffusion_core import GaussianDiffusion, TensorData, Trainer, Unet, keep_freed_memory
from diffusion_core.runtime.device import cores
from diffusion_core.runtime.threads import ThreadChoice, candidates

RESULTS = Path("benchmarks/busy_cpu.json")
REPEATS = 3
# Minimum seconds of a repeat, which ends after a complete step.
SECONDS = 4.0
# Maximum seconds of the first trial, and of the wait for another number of threads with the busy process.
LIMIT_SECONDS = 70.0


@contextmanager
def busy_process() -> Iterator[None]:
    """Keep one core busy during the block."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            time.sleep(min(1.0, SECONDS))  # until it has started
            yield
        finally:
            process.kill()


def training(name: str) -> Callable[[], object]:
    """Return a function that takes one training step, after a few warm-up steps."""
    setting = NETWORKS[name]
    options, size = setting["options"], setting["size"]
    diffusion = GaussianDiffusion(Unet(**options, self_condition=True), image_size=size)
    images = torch.randint(0, 256, (256, options["channels"], size, size), dtype=torch.uint8)
    steps = Trainer(diffusion, TensorData(images), images=10**9, batch_size=setting["batch"]).steps()
    for _ in range(3):
        next(steps)
    return lambda: next(steps)


def rate(step: Callable[[], object], batch: int) -> float:
    """Return the median images/s of the repeats."""
    rates = []
    for _ in range(REPEATS):
        count, began = 0, time.perf_counter()
        while (seconds := time.perf_counter() - began) < SECONDS:
            step()
            count += 1
        rates.append(count * batch / seconds)
    return statistics.median(rates)


def until(done: Callable[[], bool], step: Callable[[], object]) -> float:
    """Take steps until `done()` or the limit; return the seconds."""
    began = time.perf_counter()
    while (seconds := time.perf_counter() - began) < LIMIT_SECONDS and not done():
        step()
    return seconds


def measure(name: str) -> dict[str, Any]:
    """Return images/s alone and with a busy process, and the ratios."""
    step, batch = training(name), NETWORKS[name]["batch"]
    with closing(ThreadChoice(candidates(cores()))) as choice:

        def chosen_step() -> None:
            with choice.timed():
                step()

        torch.set_num_threads(cores())
        alone = rate(step, batch)
        # Complete the first trial on the idle machine.
        until(lambda: choice.state()["chosen"] is not None, chosen_step)
        at_first = choice.threads
        with busy_process():
            torch.set_num_threads(cores())
            fixed = rate(step, batch)
            noticed = until(lambda: not choice.state()["rivals"] and choice.threads != at_first, chosen_step)
            chosen = rate(chosen_step, batch)
        threads = choice.threads
    return {
        "alone": {"threads": cores(), "images_per_second": round(alone, 1)},
        "busy_all_threads": {
            "threads": cores(),
            "images_per_second": round(fixed, 1),
            "share_of_alone": round(fixed / alone, 3),
        },
        "busy_chosen_threads": {
            "threads": threads,
            "images_per_second": round(chosen, 1),
            "share_of_alone": round(chosen / alone, 3),
            "noticed_after_seconds": round(noticed, 1) if threads != at_first else None,
        },
    }


def main() -> None:
    """Measure, print and write the results."""
    keep_freed_memory()  # as in the stages
    content: dict[str, Any] = {"machine": describe(), "networks": {}}
    for name in NETWORKS:
        content["networks"][name] = result = measure(name)
        for case, figures in result.items():
            print(f"{name}, {case}: {figures}", flush=True)
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
