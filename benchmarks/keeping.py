"""What it costs to lose nothing: checkpoints written behind the training, and the queue for the tracking store.

    python -m benchmarks.keeping

A checkpoint of a network of 36 million parameters, with its optimizer and EMA, is compared with a plain write of the
same number of bytes, alternately. Then a queue of 100,000 entries is sent to a database, and to a server on this
machine. Results are written to benchmarks/keeping.json.
"""

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from benchmarks.machine import describe
from diffusion_core import GaussianDiffusion, TensorData, Trainer, Unet
from diffusion_core.config.environment import Environment
from diffusion_core.files import flush
from diffusion_core.lineage.checkpoints import KEEP
from diffusion_core.lineage.outbox import ENTRIES, Outbox
from diffusion_core.registry.connection import connect
from diffusion_core.registry.sending import Sender
from diffusion_core.runtime.allocator import keep_freed_memory
from diffusion_core.training.checkpoint import Checkpoint
from diffusion_core.training.saving import Saver

RESULTS = Path("benchmarks/keeping.json")
REPEATS = 7
STEPS = 12
QUEUED = 100_000
START = {
    "kind": "start",
    "params": {},
    "dataset": {"name": "data", "digest": "0", "md5": None, "source": "data"},
    "tags": {},
    "time": 0,
}


def trainer() -> Trainer:
    """Return a trainer of a network of 36 million parameters, after its first step."""
    torch.manual_seed(0)
    process = GaussianDiffusion(Unet(64, channels=3, self_condition=True), image_size=32)
    trained = Trainer(process, TensorData(torch.zeros(8, 3, 32, 32, dtype=torch.uint8)), images=10**6, batch_size=4)
    next(trained.steps())
    return trained


def written(plain: Path, size: int) -> float:
    """Return the seconds of a plain write of `size` bytes, until they are on disk.

    To write over a file is faster than a new one, as checkpoints are, because the kernel has its pages.
    """
    block = memoryview(os.urandom(2**24))
    began = time.perf_counter()
    with plain.open("wb", buffering=0) as file:
        for start in range(0, size, len(block)):
            file.write(block[: min(len(block), size - start)])
    flush(plain)
    return time.perf_counter() - began


def checkpoints(folder: Path) -> dict[str, object]:
    """Measure checkpoints beside plain writes, and steps beside checkpoints that are being written."""
    trained = trainer()
    tensors = trained.tensors()
    size = sum(each.nbytes for named in tensors.values() for each in named.values())
    folder.mkdir(parents=True)
    # The first write makes the file, and does not count.
    over = [written(folder / "plain", size)]
    plain: list[float] = []
    blocked: list[float] = []
    whole: list[float] = []
    with Saver(folder) as saver:
        for number in range(REPEATS):
            over.append(written(folder / "plain", size))
            plain.append(written(folder / f"plain-{number}", size))
            # As many stay as checkpoints do.
            (folder / f"plain-{number - KEEP}").unlink(missing_ok=True)
            began = time.perf_counter()
            saver.save(Checkpoint(number, tensors, {}))
            blocked.append(time.perf_counter() - began)
            saver.wait()
            whole.append(time.perf_counter() - began)
        steps = trained.steps()
        alone, beside = [], []
        for number in range(REPEATS, REPEATS + STEPS):
            began = time.perf_counter()
            next(steps)
            alone.append(time.perf_counter() - began)
            saver.save(Checkpoint(number, trained.tensors(), {}))
            began = time.perf_counter()
            next(steps)
            beside.append(time.perf_counter() - began)
            saver.wait()
    disk, checkpoint = statistics.median(plain), statistics.median(whole)
    overwriting = statistics.median(over[1:])
    return {
        "parameters": sum(each.numel() for each in trained.diffusion.model.parameters()),
        "megabytes": round(size / 1e6),
        "plain write to a new file, MB/s": round(size / 1e6 / disk),
        "plain write over an old file, MB/s": round(size / 1e6 / overwriting),
        "checkpoint written and read back, MB/s": round(size / 1e6 / checkpoint),
        "of the plain write to a new file": round(disk / checkpoint, 2),
        "of the plain write over an old file": round(overwriting / checkpoint, 2),
        "the first checkpoint holds the training, s": round(blocked[0], 3),
        "later ones, s": round(statistics.median(blocked[1:]), 3),
        "of the seconds until it is whole": round(statistics.median(blocked[1:]) / checkpoint, 3),
        "step alone, s": round(statistics.median(alone), 3),
        "step while a checkpoint is written, s": round(statistics.median(beside), 3),
    }


def queue(folder: Path) -> Outbox:
    """Return a queue with a run and 100,000 rows of four metrics."""
    outbox = Outbox(folder)
    names = ("train/loss", "train/grad_norm", "train/learning_rate", "train/images_per_second")
    with (folder / ENTRIES).open("w", encoding="utf-8") as file:
        file.write(json.dumps(START) + "\n")
        for step in range(QUEUED):
            entry = {"kind": "metrics", "values": dict.fromkeys(names, step / 3), "step": step, "time": step}
            file.write(json.dumps(entry) + "\n")
    return outbox


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Run MLflow's server with a database in `folder`, and yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--backend-store-uri"]
    command += [f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "artifacts"), "--workers", "1"]
    log = subprocess.DEVNULL
    with subprocess.Popen([sys.executable, "-m", *command], stdout=log, stderr=log, start_new_session=True) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            while True:
                with suppress(OSError):
                    urllib.request.urlopen(f"{address}/health", timeout=1).close()
                    break
                time.sleep(0.2)
            yield address
        finally:
            os.killpg(process.pid, 15)


def replayed(address: str, folder: Path) -> dict[str, object]:
    """Measure how fast a queue is sent to a store."""
    environment = Environment(tracking_uri=address)  # type: ignore[arg-type]
    outbox = queue(folder)
    client = connect(environment)
    began = time.perf_counter()
    count = sum(Sender(client, environment, outbox).send())
    seconds = time.perf_counter() - began
    assert outbox.is_empty()
    return {"entries": count, "seconds": round(seconds, 1), "entries a second": round(count / seconds)}


def appended(folder: Path) -> float:
    """Return the milliseconds of appending an entry, until it is on disk."""
    outbox = Outbox(folder)
    seconds = []
    for step in range(200):
        began = time.perf_counter()
        outbox.append({"kind": "metrics", "values": {"train/loss": 0.1}, "step": step, "time": step})
        seconds.append(time.perf_counter() - began)
    return round(1000 * statistics.median(seconds), 2)


def main() -> None:
    """Measure and write the results."""
    keep_freed_memory()
    folder = Path(tempfile.mkdtemp(dir=".", prefix=".keeping.tmp-"))
    try:
        results: dict[str, object] = {"machine": describe(), "checkpoint": checkpoints(folder / "checkpoints")}
        results["queue to a database (SQLite)"] = replayed(f"sqlite:///{folder.absolute()}/mlflow.db", folder / "a")
        with server(folder.absolute()) as address:
            results["queue to a server"] = replayed(address, folder / "b")
        results["appending an entry, ms"] = appended(folder / "c")
    finally:
        shutil.rmtree(folder)
    text = json.dumps(results, indent=2) + "\n"
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
