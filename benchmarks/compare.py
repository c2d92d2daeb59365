"""This project beside denoising-diffusion-pytorch and diffusers: `make bench`.

Every library is a process of its own on the same PyTorch; they take turns, and figures are medians of the ratios of
neighbours in time, because machines are shared and their speed drifts. Writes benchmarks/compare-<device>.json and .md.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.digits import frechet_distance, training_digits
from benchmarks.machine import describe
from benchmarks.report import write

PEERS = ("ours", "lucidrains", "huggingface")
# The usual network of the two libraries' examples, on a CPU and on a GPU.
CPU = {"size": 32, "dim": 64, "dim_mults": [1, 2, 4], "batch": 32}
GPU = {"size": 64, "dim": 128, "dim_mults": [1, 2, 4], "batch": 128}
REPEATS = 7
STEPS = 50
# By images at a time: how many of the 50 steps are timed, and how often.
SAMPLING = {16: (50, 3), 250: (10, 1)}
QUALITY_SIZE = 16
QUALITY = {"size": QUALITY_SIZE, "channels": 1, "dim": 32, "dim_mults": [1, 2], "batch": 64, "learning_rate": 1e-3}
QUALITY_SECONDS = 120.0
QUALITY_SAMPLES = 2000


class Worker:
    """A library at work; see `benchmarks.worker`."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.start = self._answer()

    def __call__(self, *order: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("{"):
            raise RuntimeError(f"a benchmark's worker ended or said {line!r}")
        content: dict[str, Any] = json.loads(line)
        return content


@contextmanager
def working(python: str, peer: str, setting: dict[str, Any]) -> Iterator[Worker]:
    """Start a library and end it with the block."""
    command = [python, "-m", "benchmarks.worker", peer, json.dumps(setting)]
    began = time.perf_counter()
    # Their bars are not of interest.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        worker = Worker(process)
        worker.start["first_step"] = time.perf_counter() - began
        yield worker
        assert process.stdin is not None
        process.stdin.close()


def in_turns(workers: dict[str, Worker], *order: object) -> dict[str, list[float]]:
    """Return the seconds that each worker took in each round."""
    rounds = [{name: float(worker(*order)["seconds"]) for name, worker in workers.items()} for _ in range(REPEATS)]
    return {name: [each[name] for each in rounds] for name in workers}


def compared(python: str, setting: dict[str, Any], peers: Sequence[str] = PEERS) -> dict[str, Any]:
    """Return what each library does with one setting; the order of starting is that of `peers`."""
    result: dict[str, Any] = {"setting": setting}
    with ExitStack() as stack:
        workers = {peer: stack.enter_context(working(python, peer, setting)) for peer in peers}
        result["first_step_seconds"] = {name: worker.start["first_step"] for name, worker in workers.items()}
        result["torch"] = workers["ours"].start["torch"]
        for worker in workers.values():
            worker("train", 1)
        result["train_seconds"] = in_turns(workers, "train", 2)
        result["peak_megabytes"] = {name: worker("peak")["megabytes"] for name, worker in workers.items()}
    return result


def sampled(python: str, setting: dict[str, Any]) -> dict[str, Any]:
    """Return the seconds of DDIM in 50 steps for so many images at a time; each step costs the same."""
    result: dict[str, Any] = {}
    with ExitStack() as stack:
        workers = {peer: stack.enter_context(working(python, peer, setting)) for peer in PEERS}
        for count, (steps, repeats) in SAMPLING.items():
            rounds = [
                {name: STEPS * float(each("sample", count, steps)["seconds"]) for name, each in workers.items()}
                for _ in range(repeats)
            ]
            result[str(count)] = {name: [each[name] for each in rounds] for name in workers}
    return result


def quality(python: str) -> dict[str, Any]:
    """Return the Fréchet distance that each library reaches in the same time on the digits."""
    images, reference = training_digits(QUALITY_SIZE)
    distances: dict[str, Any] = {"setting": QUALITY, "seconds": QUALITY_SECONDS, "samples": QUALITY_SAMPLES}
    with tempfile.TemporaryDirectory() as folder:
        torch.save(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), f"{folder}/images.pt")
        for peer in PEERS:
            with working(python, peer, {**QUALITY, "images": f"{folder}/images.pt"}) as worker:
                steps = worker("train_for", QUALITY_SECONDS)["steps"]
                worker("draw", QUALITY_SAMPLES, 50, STEPS, f"{folder}/{peer}")
            drawn = np.fromfile(f"{folder}/{peer}", np.uint8).reshape(-1, 1, *images.shape[1:3])
            distance, floor = frechet_distance(drawn.transpose(0, 2, 3, 1), reference)
            distances[peer] = {"steps": steps, "frechet": distance}
            distances["floor"] = floor
            print(f"quality: {peer} {distance:.3f} after {steps} steps (floor {floor:.3f})", flush=True)
    return distances


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, help="the interpreter that has all three libraries")
    arguments = parser.parse_args()
    gpu = torch.cuda.is_available()
    setting = GPU if gpu else CPU
    content: dict[str, Any] = {"machine": describe()}
    content["training"] = compared(arguments.python, setting)
    content["self_conditioned"] = compared(
        arguments.python, {**setting, "self_condition": True}, ("ours", "lucidrains")
    )
    if gpu:
        content["amp"] = compared(arguments.python, {**setting, "amp": True}, ("ours", "lucidrains"))
    content["sampling"] = sampled(arguments.python, setting)
    content["quality"] = quality(arguments.python)
    write(content, Path(f"benchmarks/compare-{'gpu' if gpu else 'cpu'}"))


if __name__ == "__main__":
    main()
