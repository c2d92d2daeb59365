"""The parts of the comparison that measure time and memory; `benchmarks.quality` has the one that trains for long."""

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks.turns import PEERS, Part, Worker

STEPS = 50
# In these torch.compile compiles, its graphs are recorded, and the allocator learns what it must keep.
WARM_UP_STEPS = 4
MATRIX_SIZE = 8192


def training(part: Part, peers: Sequence[str] = PEERS, **options: object) -> dict[str, Any]:
    """Return the seconds of a training step and the memory of each library."""

    def measure(setting: dict[str, Any]) -> dict[str, Any]:
        with part.libraries(peers, {**setting, **options}) as workers:
            for worker in workers.values():
                worker("train", WARM_UP_STEPS)
            what = f"training at {setting['size']} x {setting['size']}"
            seconds = part.rounds(partial(_turn, workers, "train", part.plan.steps), part.plan.rounds, what)
            memory = {name: worker("peak_memory")["megabytes"] for name, worker in workers.items()}
        return {"setting": {**setting, **options}, "train_seconds": seconds, "peak_megabytes": memory}

    return {"networks": part.networks(measure)}


def self_conditioned(part: Part) -> dict[str, Any]:
    """Return what `training` returns with self-conditioning, which diffusers has not."""
    return training(part, ("ours", "lucidrains"), self_condition=True)


def amp(part: Part) -> dict[str, Any]:
    """Return what `training` returns where denoising-diffusion-pytorch trains with its own mixed precision."""
    return training(part, ("ours", "lucidrains"), amp=True)


def sampling(part: Part) -> dict[str, Any]:
    """Return the seconds of DDIM in 50 steps by images at a time; where fewer are timed, each costs the same."""

    def measure(setting: dict[str, Any]) -> dict[str, Any]:
        seconds: dict[str, Any] = {}
        with part.libraries(PEERS, setting) as workers:
            for count, (steps, rounds) in part.plan.sampling.items():
                for worker in workers.values():
                    worker("sample", count, WARM_UP_STEPS)
                what = f"sampling {count} images of {setting['size']} x {setting['size']}"
                taken = part.rounds(partial(_turn, workers, "sample", count, steps), rounds, what)
                seconds[str(count)] = {name: [STEPS * each for each in values] for name, values in taken.items()}
        return {"sample_seconds": seconds}

    return {"networks": part.networks(measure)}


def first_step(part: Part) -> dict[str, Any]:
    """Return the seconds from a process's start to the end of its first training step.

    On a GPU twice: with nothing in the folder where this project keeps compiled kernels, and with what the first left.
    """
    # So that the first of them does not wait for the disk alone.
    subprocess.run([part.plan.python, "-c", "import torch"], check=True)

    def measure(setting: dict[str, Any]) -> dict[str, Any]:
        if not part.plan.gpu:
            return {"first_step_seconds": _first_steps(part, setting, os.environ)}
        with tempfile.TemporaryDirectory() as folder:
            # A folder that the user has set would be taken instead.
            own = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
            environment = {name: value for name, value in os.environ.items() if name not in own}
            environment["BENCH_COMPILE_CACHE"] = folder
            return {
                "first_step_seconds": _first_steps(part, setting, environment),
                "warm_first_step_seconds": _first_steps(part, setting, environment),
            }

    return {"networks": part.networks(measure)}


def peak(part: Part, matrix_size: int = MATRIX_SIZE) -> dict[str, Any]:
    """Return the rate of a product of matrices, and the operations and seconds of a training step."""

    def measure(setting: dict[str, Any]) -> dict[str, Any]:
        with part.libraries(["ours"], setting) as workers:
            ours = workers["ours"]
            ours("train", WARM_UP_STEPS)
            what = f"training at {setting['size']} x {setting['size']}"
            taken = part.rounds(partial(_turn, workers, "train", part.plan.steps), part.plan.rounds, what)
            return {
                "matrix_flop_per_second": ours("matrix_rate", matrix_size)["flop_per_second"],
                "flop_per_image": ours("flop")["flop_per_image"],
                "step_seconds": taken["ours"],
            }

    return {"networks": part.networks(measure)}


def _turn(workers: Mapping[str, Worker], *order: object) -> dict[str, float]:
    return {name: float(worker(*order)["seconds"]) for name, worker in workers.items()}


def _first_steps(part: Part, setting: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, float]:
    """Return the seconds of each library that is installed, one after the other."""
    seconds = {}
    for peer in PEERS:
        began = time.perf_counter()
        with part.library(peer, setting, environment) as worker:
            if worker:
                worker("train", 1)
                seconds[peer] = time.perf_counter() - began
    return seconds
