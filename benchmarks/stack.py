"""The cost of a team's servers on one machine, and of the flow compared with DVC.

    python -m benchmarks.stack

The flow, and `dvc repro` with `publish` and `promote`, run the same small pipeline alternately, each in its own clone.
The flow uses the Prefect server of the stack, and once a temporary one. Results are written to benchmarks/stack.json.
"""

import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

from benchmarks.machine import describe

RESULTS = Path("benchmarks/stack.json")
REPEATS = 3
STAGES = ("ingest", "prepare", "reference", "train", "sample", "evaluate", "publish", "promote")


def run(folder: Path, *arguments: str, **variables: str) -> tuple[float, str]:
    """Return the seconds that a Python module takes, and its output."""
    began = time.perf_counter()
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", **variables}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True
    )
    return time.perf_counter() - began, done.stdout


def clone(folder: Path) -> Path:
    """Return a new clone of this repository with a small training."""
    subprocess.run(["git", "clone", "--quiet", str(Path.cwd()), str(folder)], check=True)
    yaml = YAML()
    params = yaml.load(folder / "params.yaml")
    params["reference"]["images"] = 3000
    params["train"]["images"] = 1280
    params["train"]["network"]["dim"] = 8
    params["sample"] |= {"count": 60}
    params["sample"]["sampler"]["steps"] = 4
    params["promote"]["limits"] = {}
    yaml.dump(params, folder / "params.yaml")
    identity = ["-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost"]
    subprocess.run(["git", *identity, "commit", "--quiet", "--all", "--message", "Small"], cwd=folder, check=True)
    return folder


def bare(folder: Path) -> float:
    """Return the seconds of `dvc repro`, `publish` and `promote`."""
    program = [["dvc", "repro"], ["diffusion_core", "publish"], ["diffusion_core", "promote"]]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return sum(run(folder, *module, PATH=path)[0] for module in program)


def memory(folder: Path) -> dict[str, int]:
    """Return the MiB of each server with its children; shared pages are divided among processes."""
    started = json.loads((folder / ".stack/started.json").read_text(encoding="utf-8"))
    return {
        each["name"]: sum(
            member.memory_full_info().pss
            for member in [psutil.Process(each["pid"]), *psutil.Process(each["pid"]).children(recursive=True)]
        )
        // 2**20
        for each in started
    }


def main() -> None:
    """Measure, print and write the results."""
    content: dict[str, Any] = {"machine": describe()}
    # PostgreSQL's user needs permission to pass through the folder.
    place = Path(tempfile.mkdtemp(prefix="benchmark-"))
    place.chmod(0o755)
    server = clone(place / "server")
    try:
        first, _ = run(server, "stack", "up")
        content["stack"] = {"MiB": memory(server)}
        stop, _ = run(server, "stack", "down")
        again, _ = run(server, "stack", "up")
        content["stack"] |= {"first_start_seconds": first, "start_seconds": again, "stop_seconds": stop}

        known = dict(line.split("=", 1) for line in (server / ".stack/env").read_text(encoding="utf-8").splitlines())
        prefect = {name: shlex.split(value)[0] for name, value in known.items() if name.startswith("PREFECT_")}
        dvc, flow = [], []
        for repeat in range(REPEATS):
            dvc.append(bare(clone(place / f"bare-{repeat}")))
            flow.append(run(clone(place / f"flow-{repeat}"), "flows.pipeline", **prefect)[0])
        alone, _ = run(clone(place / "alone"), "flows.pipeline")
        nothing, _ = run(place / "flow-0", "flows.pipeline", **prefect)
    finally:
        run(server, "stack", "down")
        shutil.rmtree(place)
    added = statistics.median(one - other for one, other in zip(flow, dvc, strict=True))
    content["flow"] = {
        "dvc_seconds": dvc,
        "seconds": flow,
        "added_seconds": added,
        "added_seconds_a_stage": added / len(STAGES),
        "added_seconds_with_a_temporary_server": alone - statistics.median(dvc),
        "seconds_with_nothing_to_do": nothing,
    }
    text = json.dumps(content, indent=1)
    RESULTS.write_text(re.sub(r"(\d+\.\d\d)\d+", r"\1", text) + "\n", encoding="utf-8")
    print(RESULTS.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
