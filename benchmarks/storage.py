"""Speed of fetching images from an object store: many small objects, a large one, and nothing new.

    python -m benchmarks.storage

`rclone serve s3` on this machine is the store, and rclone is the peer for the large object. Both fetch from the same
server alternately. Results are written to benchmarks/storage.json. The server shares the processor with its clients.
It reads the whole object for the ETag of each response, which dominates the time of the large object.
"""

import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.machine import describe
from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import IngestSettings
from diffusion_core.data.sources.s3 import S3
from diffusion_core.stages import ingest
from diffusion_core.storage import Store, download, open_store

RESULTS = Path("benchmarks/storage.json")
REPEATS = 3
OBJECTS = 10_000
OBJECT_BYTES = 1_000
LARGE_BYTES = 1_000_000_000
BUCKET, SMALL, LARGE = "bucket", "small", "large.bin"
ACCESS, SECRET = "benchmark", "benchmark-secret"
RCLONE = Path(sys.executable).with_name("rclone")


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve `folder`, with its sub-folders as buckets, and yield the address."""
    variables = {"RCLONE_CONFIG": os.devnull, "RCLONE_AUTH_KEY": f'"{ACCESS},{SECRET}"'}
    command = [str(RCLONE), "serve", "s3", "--addr", "127.0.0.1:0", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | variables) as process:
        try:
            assert process.stderr is not None
            found = (re.search(r"server on \[(http://.*?)/\]", line) for line in process.stderr)
            yield next(each[1] for each in found if each)
        finally:
            process.terminate()


def fill(bucket: Path) -> None:
    """Write the objects, of random bytes, in ten folders."""
    for number in range(OBJECTS):
        file = bucket / SMALL / str(number % 10) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.urandom(OBJECT_BYTES))
    with (bucket / LARGE).open("wb") as stream:
        for _ in range(0, LARGE_BYTES, 10**7):
            stream.write(os.urandom(10**7))


def fetch(project: Path, environment: Environment) -> float:
    """Return the seconds to bring the small objects, or what is new of them, into the project's data/raw."""
    settings = IngestSettings(source=S3(f"s3://{BUCKET}/{SMALL}"))
    project.mkdir(exist_ok=True)
    began = time.perf_counter()
    with contextlib.chdir(project):
        ingest.run(settings, environment)
    return time.perf_counter() - began


def large(store: Store, folder: Path) -> float:
    """Return the seconds to fetch the large object with this project."""
    (wanted,) = store.objects(BUCKET, LARGE)
    began = time.perf_counter()
    download(store, BUCKET, wanted, folder / "ours")
    taken = time.perf_counter() - began
    (folder / "ours").unlink()
    return taken


def peer(address: str, folder: Path) -> float:
    """Return the seconds to fetch the large object with rclone."""
    backend = {
        "TYPE": "s3",
        "PROVIDER": "Rclone",
        "ENDPOINT": address,
        "ACCESS_KEY_ID": ACCESS,
        "SECRET_ACCESS_KEY": SECRET,
    }
    variables = {"RCLONE_CONFIG": os.devnull} | {
        f"RCLONE_CONFIG_STORE_{name}": value for name, value in backend.items()
    }
    began = time.perf_counter()
    subprocess.run(
        [RCLONE, "copyto", f"store:{BUCKET}/{LARGE}", folder / "rclone"], check=True, env=os.environ | variables
    )
    taken = time.perf_counter() - began
    (folder / "rclone").unlink()
    return taken


def requests_of_a_rerun(store: Store, project: Path, environment: Environment) -> Counter[str]:
    """Return the number of requests of each kind if nothing is new."""
    made: Counter[str] = Counter()
    store.client.meta.events.register(
        "before-send.s3", lambda event_name, **_: made.update([event_name.split(".")[-1]])
    )
    with patch("diffusion_core.storage.open_store", return_value=store):
        fetch(project, environment)
    return made


def measure(folder: Path, address: str) -> dict[str, Any]:
    """Return the results, with the seconds of each repeat."""
    environment = Environment(s3_endpoint=address, s3_access_key=ACCESS, s3_secret_key=SECRET)  # type: ignore[arg-type]
    store = open_store(environment)
    small: list[float] = []
    reruns: list[float] = []
    ours: list[float] = []
    rclones: list[float] = []
    for repeat in range(REPEATS):
        project = folder / f"project-{repeat}"
        small.append(fetch(project, environment))
        reruns.append(fetch(project, environment))
        ours.append(large(store, folder))
        rclones.append(peer(address, folder))
    requests = requests_of_a_rerun(store, folder / "project-0", environment)
    ratios = [theirs / own for own, theirs in zip(ours, rclones, strict=True)]
    return {
        "small objects": {"per_second": round(OBJECTS / statistics.median(small)), "seconds": small},
        "nothing new": {
            "object_requests": requests["GetObject"] + requests["HeadObject"],
            "listing_requests": requests["ListObjectsV2"],
            "seconds": reruns,
        },
        "large object": {
            "times_as_fast_as_rclone": round(statistics.median(ratios), 2),
            "seconds": ours,
            "rclone_seconds": rclones,
        },
    }


def main() -> None:
    """Measure, print and write the results."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill(folder / "store" / BUCKET)
        with serving(folder / "store") as address:
            content = {"machine": describe()} | measure(folder, address)
    large, small, rerun = content["large object"], content["small objects"], content["nothing new"]
    print(f"{OBJECTS} objects of {OBJECT_BYTES} bytes: {small['per_second']} a second")
    print(f"one object of {LARGE_BYTES} bytes: {large['times_as_fast_as_rclone']} times as fast as rclone")
    print(f"nothing new: {rerun['object_requests']} objects asked for in {statistics.median(rerun['seconds']):.1f} s")
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
