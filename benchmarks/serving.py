"""Measure `diffusion serve-model` beside the bare sampler, and under fifty clients: `make bench-serve`.

It serves the champion of this folder. The server and the sampler take turns, and medians are compared. Run it on
a machine that does nothing else.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
import psutil

from diffusion_core.config.environment import load_environment

BATCH, STEPS = 16, 25
TURNS = 7
# Of a turn: many, because the first is not full.
BATCHES = 40
# Images of a request: of many clients of one image each, and of two with a batch each.
REQUESTS = (1, BATCH)
CLIENTS, SECONDS = 50, 60.0
# A client that was refused waits so long before it asks again.
PATIENCE = 0.05
RESULTS = Path(__file__).parent / "serving.json"


@dataclass(frozen=True)
class Load:
    """What fifty clients saw.

    Attributes:
        statuses: how many answers had each status.
        lost: requests without an answer.
        images_per_second: of the answers with an image.
        p50: seconds to an image, the median.
        p99: seconds to an image, of all but one in a hundred at most.
        batch_seconds: of one batch of the server's, the median of the turns before.
        memory_mb: of all processes of the server together, without what they share, each ten seconds.
    """

    statuses: dict[str, int]
    lost: int
    images_per_second: float
    p50: float
    p99: float
    batch_seconds: float
    memory_mb: list[float]


SAMPLER = """
import sys, time
from dataclasses import replace
import torch
from diffusion_core.config.environment import load_environment
from diffusion_core.registry.served import load_served
from diffusion_core.runtime.device import choose_device, choose_dtype
from diffusion_core.samplers.noise import ImageNoise

environment = load_environment()
device = choose_device(environment.device)
dtype = choose_dtype(environment.precision, device).dtype
served = load_served(environment, environment.registered_model, "champion", device)
model = served.model
batch, steps, batches = map(int, sys.argv[1:])
sampler = replace(served.judged_by.sampler, steps=steps)


def sample():
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        labels = model.labels(batch)
        model.diffusion.sample(
            batch,
            sampler=sampler,
            guidance=served.judged_by.guidance,
            randn=ImageNoise(0, range(batch)),
            classes=None if labels is None else torch.tensor(labels),
        )
    if device.type == "cuda":
        torch.cuda.synchronize()


sample()
for line in sys.stdin:
    begun = time.perf_counter()
    for _ in range(batches):
        sample()
    print(batch * batches / (time.perf_counter() - begun), flush=True)
"""


def main() -> None:
    """Print a table, and write the measurements to benchmarks/serving.json."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "diffusion_core", "serve-model", "champion", "--port", str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        bare = subprocess.Popen(
            [sys.executable, "-c", SAMPLER, *map(str, (BATCH, STEPS, BATCHES))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            result = asyncio.run(_measure(address, server.pid, bare))
        finally:
            bare.kill()
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


async def _measure(address: str, server: int, bare: "subprocess.Popen[str]") -> dict[str, object]:
    token = load_environment().serve_token
    headers = {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}
    # The server closes connections that are idle for five seconds, and a turn of the sampler takes as long.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2)
    async with aiohttp.ClientSession(address, connector=connector, headers=headers) as session:
        await _ready(session, server)
        await _batches(session, 1)
        turns = [([await _batches(session, count) for count in REQUESTS], _bare(bare)) for _ in range(TURNS)]
        sampler = statistics.median(each for _, each in turns)
        rates = [statistics.median(served[place] for served, _ in turns) for place in range(len(REQUESTS))]
        shares = [statistics.median(served[place] / each for served, each in turns) for place in range(len(REQUESTS))]
        load = await _load(session, server, BATCH / rates[0])
    return {
        "machine": f"{psutil.cpu_count()} cores",
        "batch": BATCH,
        "steps": STEPS,
        "sampler_images_per_second": round(sampler, 1),
        "served": {
            f"{count} images a request": {"images_per_second": round(rate, 1), "share": round(share, 3)}
            for count, rate, share in zip(REQUESTS, rates, shares, strict=True)
        },
        "load": asdict(load),
    }


def _bare(process: "subprocess.Popen[str]") -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


async def _ready(session: aiohttp.ClientSession, server: int) -> None:
    while psutil.Process(server).status() != psutil.STATUS_ZOMBIE:
        try:
            async with session.get("/health") as answer:
                if answer.status == 200:
                    return
        except aiohttp.ClientConnectionError:
            pass
        await asyncio.sleep(0.2)
    raise SystemExit("the server has ended: is there a champion? `diffusion serve-model champion` says what is wrong")


async def _ask(session: aiohttp.ClientSession, seed: int, count: int = 1) -> int:
    async with session.post("/images", json={"n": count, "seed": seed, "steps": STEPS}) as answer:
        await answer.read()
        return answer.status


async def _batches(session: aiohttp.ClientSession, count: int) -> float:
    """Return the images per second of clients that ask for `count` each; they ask for two batches at any time."""
    seeds = iter(range(BATCH * BATCHES // count))

    async def client() -> None:
        for seed in seeds:
            # The queue is full of those whose answers are on their way.
            while (status := await _ask(session, seed, count)) == 429:
                await asyncio.sleep(0)
            assert status == 200, status

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(2 * BATCH // count)))
    return BATCH * BATCHES / (time.perf_counter() - begun)


async def _load(session: aiohttp.ClientSession, server: int, batch_seconds: float) -> Load:
    statuses: Counter[str] = Counter()
    waits: list[float] = []
    lost, asked = 0, iter(range(10**9))
    end = time.monotonic() + SECONDS

    async def client() -> None:
        nonlocal lost
        while time.monotonic() < end:
            begun = time.perf_counter()
            try:
                status = await _ask(session, next(asked))
            except (aiohttp.ClientError, TimeoutError):
                lost += 1
                continue
            statuses[str(status)] += 1
            if status == 200:
                waits.append(time.perf_counter() - begun)
            else:
                await asyncio.sleep(PATIENCE)

    async def memory() -> list[float]:
        found = []
        while time.monotonic() < end:
            found.append(round(_memory(server) / 1e6, 1))
            await asyncio.sleep(10)
        return found

    begun = time.monotonic()
    _, used = await asyncio.gather(asyncio.gather(*(client() for _ in range(CLIENTS))), memory())
    took = time.monotonic() - begun
    waits.sort()
    return Load(
        dict(statuses),
        lost,
        round(len(waits) / took, 1),
        round(statistics.median(waits), 3),
        round(waits[int(0.99 * len(waits))], 3),
        round(batch_seconds, 3),
        used,
    )


def _memory(server: int) -> int:
    """Return the memory of a process and its children that they share with none, in bytes."""
    root = psutil.Process(server)
    return sum(each.memory_full_info().uss for each in (root, *root.children(recursive=True)))


if __name__ == "__main__":
    main()
