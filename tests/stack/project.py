"""A team's project: a repository with the code of this checkout, small parameters, and its images in a bucket."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import yaml

from tests.flows.repository import CHECKOUT, commit

SOURCE = "s3://images/digits"


def write_project(folder: Path) -> None:
    """Copy what git knows of this checkout, as it lies there, make its training small, and commit it."""
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    for name in files:
        if not name.startswith(("tests/", "docs/", "benchmarks/")) and (CHECKOUT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CHECKOUT / name, folder / name)
    content = yaml.safe_load((folder / "params.yaml").read_text())
    content["ingest"]["source"] = {"kind": "s3", "url": SOURCE}
    content["reference"] |= {"images": 3000, "features": 16}
    content["train"] |= {"images": 12800, "report_every_images": 640, "preview_every_images": 10**6}
    content["train"]["network"] |= {"dim": 8}
    content["sample"] |= {"count": 60, "sampler": {"kind": "ddim", "steps": 4}}
    content["promote"] = {"limits": {"frechet": {"at_most": 1e9}}, "champion": {}}
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    subprocess.run(["git", "init", "--quiet", "--initial-branch", "main"], cwd=folder, check=True)
    commit(folder)


def variables(folder: Path, **more: str) -> dict[str, str]:
    """Variables of a shell that works with the stack of the project in `folder`."""
    lines = (folder / ".stack/env").read_text().splitlines()
    own = dict(line.split("=", 1) for line in lines)
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DIFFUSION_", "MLFLOW_"))
    }
    return {**kept, "PREFECT_HOME": str(folder / ".prefect"), **own, **more}


def python(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a module of Python in the project to its end."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        # Not every folder here is a checkout, and `flows` and `stack` are installed nowhere.
        env={**(variables(folder) if env is None else env), "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
    )


class Server:
    """Prefect's server of the stack, asked as a page would ask it."""

    def __init__(self, folder: Path) -> None:
        known = variables(folder)
        name, word = known["PREFECT_API_AUTH_STRING"].split(":")
        self.client = httpx.Client(base_url=known["PREFECT_API_URL"], auth=(name, word), timeout=30)

    def post(self, path: str, **content: object) -> object:
        answer = self.client.post(path, json=content)
        answer.raise_for_status()
        return answer.json()

    def get(self, path: str) -> object:
        answer = self.client.get(path)
        answer.raise_for_status()
        return answer.json()

    def run(self, **parameters: object) -> str:
        """Start a run of the deployment and return its id."""
        deployment = self.get("/deployments/name/pipeline/nightly")["id"]
        return self.post(
            f"/deployments/{deployment}/create_flow_run", parameters=parameters, state={"type": "SCHEDULED"}
        )["id"]

    def shorten_silence(self, seconds: float) -> None:
        """Let the automation that looks for dead runs, whose heartbeats come every 30 seconds, wait less for them."""
        wanted = {"name": {"any_": ["diffusion: mark runs that died"]}}
        (automation,) = self.post("/automations/filter", automations=wanted)
        automation["trigger"]["within"] = seconds
        known = ("name", "description", "enabled", "trigger", "actions", "tags")
        self.client.put(
            f"/automations/{automation['id']}", json={name: automation[name] for name in known}
        ).raise_for_status()

    def log(self, run: str) -> str:
        """What the run has logged so far."""
        wanted = {"flow_run_id": {"any_": [run]}}
        lines: list[str] = []
        while True:
            page = self.post("/logs/filter", logs=wanted, sort="TIMESTAMP_ASC", offset=len(lines), limit=200)
            lines += [line["message"] for line in page]
            if len(page) < 200:
                return "\n".join(lines)

    def wait(self, run: str, states: set[str], seconds: float) -> dict[str, object]:
        """Wait until a run is in one of the states, and return it."""
        deadline = time.monotonic() + seconds
        while (found := self.get(f"/flow_runs/{run}"))["state_type"] not in states:
            assert time.monotonic() < deadline, found["state"]["name"] + "\n" + self.log(run)
            time.sleep(0.5)
        return found


def until(condition, seconds: float, what: str) -> None:
    """Wait until `condition()` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)
