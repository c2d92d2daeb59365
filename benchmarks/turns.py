"""Runs libraries alternately, each in its own process, within the time limit of a part of the comparison."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks.report import NAMES

PEERS = tuple(NAMES)
# A median of fewer ratios is too random.
LEAST_ROUNDS = 3
STDERR_LINES = 20
WARNING = "warning: "


@dataclass(frozen=True)
class Plan:
    """The measurements on a device.

    Attributes:
        python: the interpreter that has the libraries.
        networks: arguments of `benchmarks.peers.Setting`, the smallest network first.
        steps: training steps per round.
        rounds: rounds per library.
        sampling: for each batch size, the number of timed DDIM steps, of 50, and the number of rounds.
        gpu: whether the device is a GPU.
        images: a folder of photographs to measure quality on; without one, synthetic photographs on a GPU and the
            digits on a CPU.
    """

    python: str
    networks: Sequence[dict[str, Any]]
    steps: int
    rounds: int
    sampling: Mapping[int, tuple[int, int]]
    gpu: bool = False
    images: Path | None = None


class Worker:
    """A process that runs a library; see `benchmarks.worker`.

    Attributes:
        start: its first answer.
    """

    def __init__(self, process: "subprocess.Popen[str]", stderr: IO[bytes]) -> None:
        self._process = process
        self._stderr = stderr
        self.start = self._answer()

    def __call__(self, *order: object) -> dict[str, Any]:
        """Send a command and return its answer."""
        assert self._process.stdin is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("{"):
            last = self._errors()[-STDERR_LINES:]
            raise RuntimeError("\n".join([f"a benchmark's worker ended or said {line!r}; its last lines:", *last]))
        content: dict[str, Any] = json.loads(line)
        return content

    def warnings(self) -> list[str]:
        """Return its warnings so far."""
        return [line.removeprefix(WARNING) for line in self._errors() if line.startswith(WARNING)]

    def _errors(self) -> list[str]:
        # pread, because the process writes at the file's position, which must not change.
        file = self._stderr.fileno()
        return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace").splitlines()


@contextmanager
def working(
    python: str, peer: str, setting: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> Iterator[Worker]:
    """Run a library's process for the block.

    Raises:
        RuntimeError: it cannot be started.
    """
    command = [python, "-m", "benchmarks.worker", peer, json.dumps(setting)]
    # Standard error is kept for warnings and for the last lines before a failure.
    with (
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment
        ) as process,
    ):
        yield Worker(process, stderr)
        assert process.stdin is not None
        process.stdin.close()


@dataclass
class Part:
    """The resources of a part of the comparison, and the notes on its results.

    Attributes:
        plan: the measurements.
        seconds: time limit of the part; repeats that would exceed it are dropped.
        machine: the machine of this project's process.
        dropped: the measurements that were dropped.
        left_out: the reason for each library that was not measured.
        warnings: warnings of the libraries.
    """

    plan: Plan
    seconds: float
    machine: dict[str, Any] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ends = time.monotonic() + self.seconds

    @property
    def left(self) -> float:
        """Remaining seconds of the part; negative after its limit."""
        return self._ends - time.monotonic()

    def notes(self) -> dict[str, Any]:
        """Return the notes that are written with the results."""
        return {
            "machine": self.machine,
            "dropped": self.dropped,
            "left_out": self.left_out,
            "warnings": self.warnings,
        }

    @contextmanager
    def library(
        self, peer: str, setting: Mapping[str, Any], environment: Mapping[str, str] | None = None
    ) -> Iterator[Worker | None]:
        """Run a library's process for the block; if it is not installed, print a line and yield None."""
        with working(self.plan.python, peer, setting, environment) as worker:
            if reason := worker.start.get("missing"):
                if peer not in self.left_out:
                    print(f"{NAMES[peer]} is left out: {reason}", flush=True)
                self.left_out[peer] = reason
                yield None
            else:
                if peer == "ours":
                    self.machine = worker.start["machine"]
                yield worker
                for warning in (f"{NAMES[peer]}: {each}" for each in worker.warnings()):
                    if warning not in self.warnings:
                        print(warning, flush=True)
                        self.warnings.append(warning)

    @contextmanager
    def libraries(self, peers: Sequence[str], setting: Mapping[str, Any]) -> Iterator[dict[str, Worker]]:
        """Run the processes of the installed libraries for the block."""
        with ExitStack() as stack:
            started = {peer: stack.enter_context(self.library(peer, setting)) for peer in peers}
            yield {peer: worker for peer, worker in started.items() if worker}

    def rounds(self, turn: Callable[[], dict[str, float]], wanted: int, what: str) -> dict[str, list[float]]:
        """Return the result of each library in each round.

        A round that would exceed the time limit is dropped, except the first three while any time remains.
        """
        done: list[dict[str, float]] = []
        while len(done) < wanted:
            before = self.left
            done.append(turn())
            took = before - self.left
            if self.left <= 0.0 or (len(done) >= LEAST_ROUNDS and took > self.left):
                break
        if len(done) < wanted:
            self.dropped.append(f"{wanted - len(done)} of {wanted} rounds of {what}")
        return {name: [each[name] for each in done] for name in done[0]}

    def networks(self, measure: Callable[[dict[str, Any]], dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the plan's networks with the results of `measure`; only the setting if time is too short.

        The expected time of a network is that of the slowest one before it.
        """
        results: list[dict[str, Any]] = []
        longest = 0.0
        for setting in self.plan.networks:
            before = self.left
            if results and longest > before:
                self.dropped.append(f"the network for {setting['size']} x {setting['size']}")
                results.append({"setting": setting})
                continue
            results.append({"setting": setting, **measure(setting)})
            longest = max(longest, before - self.left)
        return results
