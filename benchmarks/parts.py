"""The parts of the comparison that measure time and memory; `benchmarks.quality` measures quality."""

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks.turns import PEERS, Part, Worker

STEPS = 50
# During these, torch.compile compiles, CUDA graphs are recorded, and the allocator reserves memory.
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
    """Return the result of `training` with self-conditioning, which diffusers does not have."""
    return training(part, ("ours", "lucidrains"), self_condition=True)


def amp(part: Part) -> dict[str, Any]:
    """Return the result of `training` with the mixed precision of denoising-diffusion-pytorch."""
    return training(part, ("ours", "lucidrains"), amp=True)


def sampling(part: Part) -> dict[str, Any]:
    """Return the seconds of DDIM in 50 steps by batch size; if fewer steps are timed, the time is extrapolated."""

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

    Measured twice on a GPU: with an empty compile cache, and with the cache of the first run.
    """
    # Loads PyTorch into the disk cache, so that the first library has no disadvantage.
    subprocess.run([part.plan.python, "-c", "import torch"], check=True)

    def measure(setting: dict[str, Any]) -> dict[str, Any]:
        if not part.plan.gpu:
            return {"first_step_seconds": _first_steps(part, setting, os.environ)}
        with tempfile.TemporaryDirectory() as folder:
            # The user's variables would take precedence.
            own = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
            environment = {name: value for name, value in os.environ.items() if name not in own}
            environment["BENCH_COMPILE_CACHE"] = folder
            return {
                "first_step_seconds": _first_steps(part, setting, environment),
                "warm_first_step_seconds": _first_steps(part, setting, environment),
            }

    return {"networks": part.networks(measure)}


def peak(part: Part, matrix_size: int = MATRIX_SIZE) -> dict[str, Any]:
    """Return the rate of a matrix product, and the operations and seconds of a training step."""

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
    """Return the seconds of each installed library, measured one after the other."""
    seconds = {}
    for peer in PEERS:
        began = time.perf_counter()
        with part.library(peer, setting, environment) as worker:
            if worker:
                worker("train", 1)
                seconds[peer] = time.perf_counter() - began
    return seconds
