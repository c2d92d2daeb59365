"""Libraries that take turns, each in a process of its own, within the time that a part of the comparison has."""

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
# A median of fewer ratios is a figure of chance.
LEAST_ROUNDS = 3
STDERR_LINES = 20
WARNING = "warning: "


@dataclass(frozen=True)
class Plan:
    """What is measured on a device.

    Attributes:
        python: the interpreter that has the libraries.
        networks: settings of `benchmarks.peers.Setting`, the smallest first.
        steps: of training in one turn.
        rounds: how many turns each library has.
        sampling: by images at a time: how many of DDIM's 50 steps are timed, and in how many rounds.
        gpu: whether the device is a GPU.
        images: a folder of photographs to measure quality on; what there is without one depends on the device.
    """

    python: str
    networks: Sequence[dict[str, Any]]
    steps: int
    rounds: int
    sampling: Mapping[int, tuple[int, int]]
    gpu: bool = False
    images: Path | None = None


class Worker:
    """A library at work; see `benchmarks.worker`."""

    def __init__(self, process: "subprocess.Popen[str]", stderr: IO[bytes]) -> None:
        self._process = process
        self._stderr = stderr
        self.start = self._answer()

    def __call__(self, *order: object) -> dict[str, Any]:
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
        """Return what it has warned of."""
        return [line.removeprefix(WARNING) for line in self._errors() if line.startswith(WARNING)]

    def _errors(self) -> list[str]:
        # The process writes where the file's position is, which must not move.
        file = self._stderr.fileno()
        return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace").splitlines()


@contextmanager
def working(
    python: str, peer: str, setting: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> Iterator[Worker]:
    """Start a library and end it with the block.

    Raises:
        RuntimeError: it cannot be started.
    """
    command = [python, "-m", "benchmarks.worker", peer, json.dumps(setting)]
    # Its bars are not of interest, only what it says before it dies.
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
    """What a part of the comparison works with, and what it has to say beside its figures.

    Attributes:
        plan: what is measured.
        seconds: how long the part may take; repeats that no longer fit are dropped.
        machine: what this project's process ran on.
        dropped: what there was no time for.
        left_out: by library, why it was not measured.
        warnings: what the libraries warned of.
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
        """Seconds until the part's time is spent; negative after that."""
        return self._ends - time.monotonic()

    def notes(self) -> dict[str, Any]:
        """Return what is written beside the figures."""
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
        """Start a library and end it with the block; None and a sentence where it is not installed."""
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
        """Start those of the libraries that are installed, and end them with the block."""
        with ExitStack() as stack:
            started = {peer: stack.enter_context(self.library(peer, setting)) for peer in peers}
            yield {peer: worker for peer, worker in started.items() if worker}

    def rounds(self, turn: Callable[[], dict[str, float]], wanted: int, what: str) -> dict[str, list[float]]:
        """Return what each library took in each round.

        A round that would not fit into what is left is dropped, but the first three are taken while any time is left.
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
        """Return the plan's networks with what `measure` finds; the setting alone where it would not fit.

        A network is expected to take as long as the slowest before it.
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
