"""The overhead of self-conditioning in a training step, and of a sampler over the network's time.

    python -m benchmarks.process_overhead

Both are ratios of interleaved repeats on this machine, and are written to benchmarks/process_overhead.json.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_core import (
    DDIM,
    DDPM,
    DPMSolver,
    GaussianDiffusion,
    Heun,
    ImageNoise,
    TensorData,
    Trainer,
    Unet,
    keep_freed_memory,
)
from diffusion_core.samplers.protocols import Sampler

RESULTS = Path("benchmarks/process_overhead.json")
REPEATS = 11
SAMPLER_BATCH = 16
# The network and images of the demo, and a common network for 32 x 32 pixels.
NETWORKS: dict[str, dict[str, Any]] = {
    "digits 8x8": {"size": 8, "batch": 64, "options": {"dim": 32, "dim_mults": (1, 2), "channels": 1}},
    "32x32, dim 64": {"size": 32, "batch": 32, "options": {"dim": 64, "dim_mults": (1, 2, 4), "channels": 3}},
}
SAMPLERS: tuple[Sampler, ...] = (
    DDPM(steps=10),
    DDIM(steps=10),
    DDIM(steps=10, eta=0.5),
    DPMSolver(steps=10),
    Heun(steps=6),
)


def interleaved(calls: list[Callable[[], float]]) -> list[list[float]]:
    """Return the seconds of each call's interleaved repeats."""
    for call in calls:
        call()
    taken = [[call() for call in calls] for _ in range(REPEATS)]
    return [list(each) for each in zip(*taken, strict=True)]


def ratio(over: list[float], under: list[float]) -> float:
    """Return the median of the ratios of consecutive measurements."""
    return statistics.median(one / other for one, other in zip(over, under, strict=True))


def training_steps(name: str, self_condition: bool) -> Callable[[], float]:
    """Return a function that takes a few training steps and returns the seconds per step."""
    setting = NETWORKS[name]
    options, size = setting["options"], setting["size"]
    diffusion = GaussianDiffusion(Unet(**options, self_condition=self_condition), image_size=size)
    images = torch.randint(0, 256, (256, options["channels"], size, size), dtype=torch.uint8)
    batch = setting["batch"]
    trainer = Trainer(diffusion, TensorData(images), images=10**9, batch_size=batch)
    steps = trainer.steps()
    count: int = max(2, 400 // (size * size))

    def call() -> float:
        began = time.perf_counter()
        for _ in range(count):
            next(steps)
        return (time.perf_counter() - began) / count

    return call


class Timed(torch.nn.Module):
    """A network that accumulates its time in `seconds`."""

    def __init__(self, network: Unet) -> None:
        super().__init__()
        self.network = network
        self.channels, self.out_dim = network.channels, network.out_dim
        self.self_condition = network.self_condition
        self.seconds = 0.0

    def forward(self, x: Tensor, t: Tensor, x_self_cond: Tensor | None) -> Tensor:
        """Return the network's output."""
        began = time.perf_counter()
        output: Tensor = self.network(x, t, x_self_cond)
        self.seconds += time.perf_counter() - began
        return output


def sampler_overhead(name: str, sampler: Sampler) -> float:
    """Return the time of everything except the network, relative to the network's time."""
    setting = NETWORKS[name]
    network = Timed(Unet(**setting["options"], self_condition=True)).eval()
    diffusion = GaussianDiffusion(network, image_size=setting["size"])
    shares = []
    for repeat in range(REPEATS):
        network.seconds = 0.0
        began = time.perf_counter()
        diffusion.sample(SAMPLER_BATCH, sampler=sampler, randn=ImageNoise(repeat, range(SAMPLER_BATCH)))
        shares.append((time.perf_counter() - began) / network.seconds - 1.0)
    return statistics.median(shares)


def main() -> None:
    """Measure, print and write the results."""
    keep_freed_memory()  # as in the stages
    content: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    content["machine"] = platform.machine()
    for name in NETWORKS:
        plain, conditioned = interleaved([training_steps(name, False), training_steps(name, True)])
        added = ratio(conditioned, plain) - 1.0
        content[name] = {"self_conditioning": round(added, 3), "step_seconds": round(statistics.median(plain), 4)}
        print(f"{name}: self-conditioning adds {added:.1%} to a step of {statistics.median(plain):.4f} s")
        for sampler in SAMPLERS:
            share = sampler_overhead(name, sampler)
            content[name][str(sampler)] = round(share, 4)
            print(f"{name}: {sampler} adds {share:.2%}")
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
