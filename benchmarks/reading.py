"""Speed at which training reads images that are not in memory: in their order, in windows, and in random order.

    python -m benchmarks.reading [--gigabytes 4]

The shards are written below .cache, because /tmp may be in memory. Before each measurement the system forgets what it
has of them. Each way reads the same number of images in batches, as a training does; ways take turns, and what is
printed are medians. Results are written to benchmarks/reading.json.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import describe
from diffusion_core.data.dataset import DatasetInfo, ImageDataset
from diffusion_core.data.shards import SHARD_BYTES, images_per_shard, map_shard, shard_file
from diffusion_core.stages.plan import ShardData
from diffusion_core.training.data import batches
from diffusion_core.training.order import Order

CACHE = Path(".cache")
RESULTS = Path("benchmarks/reading.json")
SHAPE = (64, 64, 3)
BATCH = 64
REPEATS = 5
# Of the images; a window is an eighth of the dataset.
SHARE_READ, WINDOWS = 0.5, 8
MISSING = DatasetInfo.model_construct(image_size=SHAPE[:2], channels=SHAPE[2], classes=[])


def write(folder: Path, gigabytes: float) -> None:
    """Write shards of random pixels."""
    random = np.random.default_rng(0)
    for number in range(max(1, round(gigabytes * 1e9 / SHARD_BYTES))):
        pixels = random.integers(0, 256, (images_per_shard(SHAPE), *SHAPE), np.uint8)
        with shard_file(folder, number).open("wb") as file:
            np.save(file, pixels)
            os.fsync(file.fileno())


def forget(folder: Path) -> None:
    """Let the system drop the shards from its cache."""
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def dataset(folder: Path) -> ShardData:
    """Return the images in the shards."""
    shards = [map_shard(folder, number, SHAPE) for number in range(len([*folder.iterdir()]))]
    lengths = [len(each) for each in shards]
    shard = np.repeat(np.arange(len(shards)), lengths)
    row = np.concatenate([np.arange(length) for length in lengths])
    return ShardData(ImageDataset(MISSING, shards, shard, row, None))


def rate(folder: Path, order: Order | None) -> float:
    """Return images read per second, in an order or in that of the files."""
    forget(folder)
    data = dataset(folder)
    count = len(data)
    steps = range(int(SHARE_READ * count) // BATCH)

    def indices(step: int) -> Tensor:
        return torch.arange(step * BATCH, (step + 1) * BATCH) if order is None else order.batch(step, BATCH)

    def ahead(step: int) -> Tensor:
        assert order is not None
        return order.ahead(step, BATCH, is_first=step == 0)

    began = time.perf_counter()
    total = 0
    for images, _ in batches(data, indices, steps, torch.device("cpu"), None if order is None else ahead):
        # As the copy to a device does, which reads all of it.
        total += int(images.view(torch.uint8).sum())
    assert total
    return len(steps) * BATCH / (time.perf_counter() - began)


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser("python -m benchmarks.reading", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="of all shards")
    arguments = parser.parse_args()
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        folder = Path(name)
        write(folder, arguments.gigabytes)
        count = len(dataset(folder))
        ways: dict[str, Callable[[int], Order | None]] = {
            "in their order": lambda _: None,
            "in windows": lambda seed: Order(seed, count, count // WINDOWS),
            "in random order": lambda seed: Order(seed, count),
        }
        found: dict[str, list[float]] = {way: [] for way in ways}
        for repeat in range(REPEATS):
            for way, order in ways.items():
                found[way].append(rate(folder, order(repeat)))
    medians = {way: statistics.median(rates) for way, rates in found.items()}
    content = {"machine": describe(), "images": count, "window": count // WINDOWS, "image": SHAPE, "rates": found}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for way, median in medians.items():
        share = median / medians["in their order"]
        print(
            f"{way}: {median:,.0f} images/s, {median * np.prod(SHAPE) / 1e6:,.0f} MB/s, {share:.2f} of in their order"
        )


if __name__ == "__main__":
    main()
