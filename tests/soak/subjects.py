"""What is disturbed: a training, a flow, or a deployment that a worker runs."""

import os
import resource
import signal
import subprocess
import time
from contextlib import suppress

import httpx
import psutil

from tests.soak.project import MARK, kill_marked, marked, module, variables
from tests.soak.servers import Server, prefect_server

STAGES = ("ingest", "prepare", "reference", "train", "sample", "evaluate", "publish", "promote")
SIGNALS = ("KILL", "TERM", "INT", "SEGV", "STOP")
OF_ALL = ("KILL mlflow", "STOP mlflow", "slow mlflow", "full disk")
# Prefect starts a crashed run again within a few seconds.
SECONDS_CRASHED = 20.0
CLOCK = {"clock back": -10, "clock forward": 400}


def is_stage(command):
    """Return whether a command line is that of a stage of the project."""
    return "diffusion_core" in command and command[-1] in STAGES and "diffusion_core.supervision.tied" not in command


def is_flow(command):
    """Return whether a command line is that of a flow run, alone or under a worker."""
    return "flows.pipeline" in command or command[-1] == "execute" or "prefect.flow_engine" in command


def is_worker(command):
    """Return whether a command line is that of a worker."""
    return "diffusion_core.supervision.worker" in command or {"prefect", "worker", "start"} <= {*command}


class Subject:
    """A command that is started again until it succeeds.

    Args:
        folder: of the project.
        environment: its variables.
        log: file for what it prints.
    """

    outputs = ("models/model.safetensors", "models/model.json", "plots/loss.csv", "plots/validation.csv")
    stages = ("train",)
    disturbances = (*(f"{name} stage" for name in SIGNALS), *OF_ALL, *CLOCK)
    arguments = ("diffusion_core", "train")
    publishes = False
    # Time between two disturbances, at most, in multiples of `start_seconds`.
    pause = 3.0

    def __init__(self, folder, environment, log, seed):
        self.folder, self.environment, self.log, self.seed = folder, environment, log, seed
        self.process = None

    def possible(self, disk):
        """Return the disturbances that can be done, with its project on that disk."""
        return self.disturbances

    def prepare(self):
        """Start what it needs."""

    def is_ready(self):
        """Return whether it can be started."""
        return True

    def start(self, days=0, largest=None):
        """Start it, with a clock that is wrong by some days, and with a limit on the size of its files."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                module(*self.arguments),
                cwd=self.folder,
                env=self.environment | {"SOAK_DAYS": str(days)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=largest and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))),
            )

    def poll(self):
        """Return the exit code, or None while it runs."""
        return self.process.poll()

    @property
    def mark(self):
        """The mark of what it has started."""
        return self.environment[MARK]

    def targets(self, name):
        """Return the processes that the name of a disturbance means."""
        found = []
        for process in marked(self.mark):
            with suppress(psutil.Error, ProcessLookupError):
                if self.means(name, process):
                    found.append(process)
        return found

    def means(self, name, process):
        """Return whether the name of a disturbance means a process."""
        if name == "group":
            return os.getpgid(process.pid) == self.process.pid
        command = process.cmdline()
        return {"stage": is_stage, "flow": is_flow, "worker": is_worker}[name](command)

    def leftovers(self):
        """Return the processes that should have ended with it."""
        return marked(self.mark)

    def close(self):
        """Stop what it needed."""


class Flow(Subject):
    """The whole pipeline, as a command with a temporary Prefect server."""

    outputs = (*Subject.outputs, "samples/samples.npy", "samples/grid.png", "metrics/evaluate.json")
    stages = ("train", "sample", "evaluate")
    disturbances = (*(f"{name} {who}" for who in ("stage", "flow", "group") for name in SIGNALS), *OF_ALL, *CLOCK)
    arguments = ("flows.pipeline",)
    publishes = True
    pause = 5.0


class Deployment(Subject):
    """A run of the deployment `nightly` by a worker; each run clones the project into a folder of its own."""

    stages = ("train",)
    outputs = ()
    disturbances = (
        *(f"{name} {who}" for who in ("stage", "flow") for name in ("KILL", "TERM", "SEGV", "STOP")),
        *("KILL worker", "TERM worker", "KILL prefect", "STOP prefect", "KILL mlflow", "STOP mlflow", "slow mlflow"),
        "full disk",
    )
    publishes = True
    pause = 8.0
    # For a worker and its runs to end once it is told to.
    seconds_to_end = 60.0
    is_closed = False

    def possible(self, disk):
        """Return all, but no full disk where none can be filled: the files of its runs have no limit."""
        impossible = () if disk.can_be_filled else ("full disk",)
        return tuple(each for each in self.disturbances if each not in impossible)

    def prepare(self):
        """Start a Prefect server and a worker, and deploy."""
        mark = f"{self.mark}-servers"
        self.prefect, api = prefect_server(self.log.parent / "prefect", variables(mark))
        self.environment |= {
            "PREFECT_API_URL": api,
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "DIFFUSION_REPOSITORY": self.folder.as_uri(),
            "DIFFUSION_REVISION": "main",
            "DIFFUSION_CHECKPOINTS": str(self.folder / ".checkpoints"),
            "DIFFUSION_DVC_CACHE": str(self.folder.parent / "cache"),
            "TMPDIR": str(self.folder.parent / "tmp"),
        }
        worker = ("diffusion_core.supervision.worker", "--pool", "machine", "--type", "process")
        self.worker = Server(worker, self.folder, self.environment, None)
        (self.folder.parent / "tmp").mkdir()
        self.prefect.start()
        self.prefect.wait()
        with self.log.open("ab") as log:
            deploy = module("flows.deploy", "machine")
            subprocess.run(deploy, cwd=self.folder, env=self.environment, stdout=log, stderr=log, check=True)
        self.worker.start()
        self.client = httpx.Client(base_url=api, timeout=1.0)
        self.asked = 0.0

    def is_ready(self):
        """Return whether the server answers."""
        return self.prefect.answers()

    def start(self, days=0, largest=None):
        """Create a run, as the schedule does."""
        parameters = {"overrides": [f"train.seed={self.seed}"], "refresh_data": True, "promote": True, "lock": "none"}
        deployment = self.client.get("/deployments/name/pipeline/nightly").raise_for_status().json()["id"]
        content = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        made = self.client.post(f"/deployments/{deployment}/create_flow_run", json=content).raise_for_status()
        self.run, self.crashed = made.json()["id"], None

    def poll(self):
        """Return 0 for a run that is completed, 1 for one that has ended otherwise, and None before.

        The automation starts a crashed run again, but not one that crashed before its code was reached, or while the
        server was down. The next night's run replaces these.
        """
        if time.monotonic() < self.asked + 1.0:
            return None
        self.asked = time.monotonic()
        try:
            state = self.client.get(f"/flow_runs/{self.run}").raise_for_status().json()["state_type"]
        except httpx.HTTPError:
            # The server is killed or stopped.
            return None
        if state != "CRASHED":
            self.crashed = None
        elif self.crashed is None:
            self.crashed = time.monotonic()
        elif time.monotonic() > self.crashed + SECONDS_CRASHED:
            return 1
        return {"COMPLETED": 0, "FAILED": 1, "CANCELLED": 1}.get(state)

    def leftovers(self):
        """Return the processes that should have ended with the worker; nothing before, while that runs."""
        return marked(self.mark) if self.is_closed else []

    def close(self):
        """Stop the worker with its runs, and the server."""
        self.worker.send(signal.SIGTERM)
        end = time.monotonic() + self.seconds_to_end
        # A run whose worker was killed is not stopped with the next one, and needs the server until it has ended.
        while (self.worker.lives() or marked(self.mark)) and time.monotonic() < end:
            time.sleep(0.2)
        self.is_closed = True
        self.prefect.kill()
        kill_marked(f"{self.mark}-servers")


SUBJECTS = {"training": Subject, "flow": Flow, "worker": Deployment}
