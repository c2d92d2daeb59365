"""Chooses the number of OpenMP threads of training on a CPU by measuring steps.

All cores are best on an idle machine. If another process is busy they are the worst choice, because each parallel loop
waits for the thread that lost its core. On two cores with one busy process, the demo trains at a third of its speed
with two threads and at 0.85 of it with one (benchmarks/busy_cpu.json).

The number of threads changes the rounding of gradients, so it is training state and saved in checkpoints. On an idle
machine, only the step number determines when another count is tried. `used` says which steps had how many, and
`ThreadReplay` gives another training the same.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

import torch

# Steps of one trial; its result is the fastest. The first step with another count is slower: it took 1.4 times as long.
TRIAL_STEPS = 3
# Steps before the first trial: one warm-up step of PyTorch and its allocator, then `TRIAL_STEPS`.
START_STEPS = 1 + TRIAL_STEPS
# If the first trial did not choose the largest count, a larger one is tried at this step and at each doubling of it.
# A process that was busy during the first trial may have ended.
AGAIN_STEP = 100
# A smaller count replaces a larger one if it is faster by this factor; noise of 10% hardly ever reaches it.
GAIN = 1.2
# If a count is slower than the fastest by this factor, smaller counts are not tried: they would be slower still.
LOSS = 1.5
# A trial ends early if its first step is slower than the fastest by this factor; with a busy process it may be 30.
# On an idle machine, halving or doubling a count changes less, so that noise does not end a trial.
GIVE_UP = 3.0
# The machine is busy if steps are slower than the best by `SLOW` over `SLOW_STRETCHES` consecutive stretches. A stretch
# is one step, or the steps of one second, because scheduling makes short steps alternate between fast and slow.
SLOW = 1.7
SLOW_STRETCHES = 3
STRETCH_SECONDS = 1.0
# Seconds of training until a larger count is tried again on a busy machine. The wait doubles after each trial without
# gain, and if the machine is soon busy again.
FIRST_WAIT = 30.0
LONGEST_WAIT = 600.0

log = logging.getLogger(__name__)


def candidates(cores: int) -> tuple[int, ...]:
    """Return the counts to try: all cores, then repeated halves, down to one thread.

    Raises:
        ValueError: `cores` is below 1.
    """
    if cores < 1:
        raise ValueError(f"cores is {cores}; it must be at least 1")
    return tuple(cores >> halvings for halvings in range(cores.bit_length()))


def _doubled(steps: int) -> bool:
    """Return whether `steps` is `AGAIN_STEP` times a power of two."""
    times, remainder = divmod(steps, AGAIN_STEP)
    return remainder == 0 and times.bit_count() == 1


@dataclass
class _State:
    """The state in a checkpoint. Durations are seconds per step.

    Args:
        count: threads in use outside trials.
        chosen: the greatest count chosen by a trial so far; None before the first trial has ended.
        steps: number of steps so far.
        best: the shortest duration of each count.
        last: durations of the last steps with `count`, at most `TRIAL_STEPS`.
        stretch_seconds: seconds of the current stretch.
        stretch_steps: steps of the current stretch.
        slow: mean durations of the latest consecutive slow stretches, at most `SLOW_STRETCHES`.
        rest: seconds of training since the last trial.
        wait: seconds of training between trials on a busy machine.
        futile: whether the last trial of smaller counts changed nothing, so that the next one waits.
        rivals: counts left in the current trial; the first is in use.
        taken: durations of steps with the count in trial.
        tried: duration of each count in the current trial, including `count`.
        used: the count of each step that had another one than the step before, by the number of steps before it.
        moved: whether steps before had other candidates, so that `used` lacks theirs.
    """

    count: int
    chosen: int | None = None
    steps: int = 0
    best: dict[int, float] = field(default_factory=dict)
    last: list[float] = field(default_factory=list)
    stretch_seconds: float = 0.0
    stretch_steps: int = 0
    slow: list[float] = field(default_factory=list)
    rest: float = 0.0
    wait: float = 0.0
    futile: bool = False
    rivals: list[int] = field(default_factory=list)
    taken: list[float] = field(default_factory=list)
    tried: dict[int, float] = field(default_factory=dict)
    used: dict[int, int] = field(default_factory=dict)
    moved: bool = False


class ThreadChoice:
    """Sets PyTorch's number of threads for each training step; only for a CPU and one process.

    It tries smaller counts at fixed steps near the start and when steps become slow. It returns to a larger count when
    that is faster. Call `close` when training ends.

    Args:
        candidates: counts to choose from, in decreasing order, each at least 1. A single count means no trials.
        clock: returns seconds; only differences matter.

    Raises:
        ValueError: `candidates` is empty, not decreasing, or has a number below 1.
    """

    def __init__(self, candidates: Sequence[int], clock: Callable[[], float] = time.perf_counter) -> None:
        self.candidates = tuple(candidates)
        if not self.candidates or self.candidates[-1] < 1 or list(self.candidates) != sorted({*candidates})[::-1]:
            raise ValueError(f"candidates is {self.candidates}; it must hold falling numbers, each at least 1")
        self._clock = clock
        self._before = torch.get_num_threads()
        self._state = _State(self.candidates[0])

    @property
    def threads(self) -> int:
        """The number of threads of the next step."""
        return self._state.rivals[0] if self._state.rivals else self._state.count

    @property
    def used(self) -> str | None:
        """The counts so far, as `ThreadReplay` reads them, or None where steps on another machine had others."""
        if self._state.moved or not self._state.used:
            return None
        first, *changes = self._state.used.items()
        return " ".join([str(first[1]), *(f"{step}:{count}" for step, count in changes)])

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Set the number of threads for the training step in the block, and time it.

        A step that raises an error does not count.
        """
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        threads = self.threads
        began = self._clock()
        yield
        used = self._state.used
        if not used or used[max(used)] != threads:
            used[self._state.steps] = threads
        self._took(self._clock() - began)

    def close(self) -> None:
        """Restore the number of threads that the process had before."""
        torch.set_num_threads(self._before)

    def state(self) -> dict[str, Any]:
        """Return the state for `restore`, as JSON values."""
        content = asdict(self._state)
        for name in ("best", "tried", "used"):  # JSON's keys are strings
            content[name] = {str(key): value for key, value in content[name].items()}
        return {"candidates": list(self.candidates), **content}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the result of `state()`.

        If the candidates differ, as on another machine, start again with the largest count.
        """
        content = dict(state)
        if tuple(content.pop("candidates")) != self.candidates:
            self._state = _State(self.candidates[0], moved=True)
            return
        for name in ("best", "tried", "used"):
            content[name] = {int(key): value for key, value in content[name].items()}
        self._state = _State(**content)

    # --- the rules

    def _took(self, seconds: float) -> None:
        """Add the duration of a step, and start, continue or end a trial."""
        state = self._state
        state.steps += 1
        if state.rivals:
            self._compare(seconds)
            return
        state.rest += seconds
        state.last = [*state.last, seconds][-TRIAL_STEPS:]
        state.best[state.count] = min(seconds, state.best.get(state.count, seconds))
        smaller = [count for count in self.candidates if count < state.count]
        larger = [count for count in reversed(self.candidates) if count > state.count]
        busy = self._busy(seconds)
        if state.chosen is None:
            if state.steps == START_STEPS:
                self._begin(smaller, min(state.last))
        elif busy and smaller and (not state.futile or state.rest >= state.wait):
            soon = state.rest <= 2 * state.wait
            state.wait = min(2 * state.wait, LONGEST_WAIT) if soon else FIRST_WAIT
            self._begin(smaller, fmean(state.slow))
        elif state.count < state.chosen:  # the machine was busy, so time and not only steps may decide
            if state.rest >= state.wait and len(state.last) == TRIAL_STEPS:
                self._begin(larger, min(state.last))
        elif _doubled(state.steps):
            self._begin(larger, min(state.last))

    def _busy(self, seconds: float) -> bool:
        """Return whether this step ends the last of `SLOW_STRETCHES` consecutive slow stretches."""
        state = self._state
        state.stretch_seconds += seconds
        state.stretch_steps += 1
        if state.stretch_seconds < STRETCH_SECONDS:
            return False
        mean = state.stretch_seconds / state.stretch_steps
        slow = mean > SLOW * state.best[state.count]
        state.slow = [*state.slow, mean][-SLOW_STRETCHES:] if slow else []
        state.stretch_seconds, state.stretch_steps = 0.0, 0
        return len(state.slow) == SLOW_STRETCHES

    def _begin(self, rivals: list[int], seconds: float) -> None:
        """Start a trial of `rivals`, in this order, against the current count, which takes `seconds` per step."""
        if rivals:
            self._state.rivals, self._state.tried = rivals, {self._state.count: seconds}

    def _compare(self, seconds: float) -> None:
        """Add a step of the current trial; end the trial if the remaining counts cannot be better."""
        state = self._state
        state.taken = [*state.taken, seconds]
        fastest, duration = min(state.tried.values()), min(state.taken)
        if len(state.taken) < TRIAL_STEPS and duration <= GIVE_UP * fastest:
            return
        rival, *state.rivals = state.rivals
        state.tried[rival], state.taken = duration, []
        state.best[rival] = min(duration, state.best.get(rival, duration))
        climbs = rival > state.count
        if duration >= fastest * (1.0 if climbs else LOSS) or not state.rivals:
            self._end(climbs)

    def _end(self, climbs: bool) -> None:
        """Select the best count of the trial."""
        state = self._state
        # A larger count must be faster than the current one; a smaller count must be faster by `GAIN`.
        limit = min(state.tried.values()) * (1.0 if climbs else GAIN)
        kept = max(count for count, seconds in state.tried.items() if seconds <= limit)
        if kept != state.count:
            log.info(
                "training uses %d of %d threads: %.3g s a step, against %.3g with %d",
                kept,
                self.candidates[0],
                state.tried[kept],
                state.tried[state.count],
                state.count,
            )
        if not climbs:
            state.futile = kept == state.count
        elif kept == state.count != state.chosen:
            state.wait = min(2 * state.wait, LONGEST_WAIT)
        state.chosen = max(kept, state.chosen or kept)
        state.count, state.rest = kept, 0.0
        state.rivals, state.tried = [], {}
        state.last, state.slow = [], []
        state.stretch_seconds, state.stretch_steps = 0.0, 0


class ThreadReplay(ThreadChoice):
    """Gives each step the number of threads that it had in an earlier training, and tries none.

    Args:
        used: `ThreadChoice.used` of that training: the first count, then `steps:count` for each change.
    """

    def __init__(self, used: str) -> None:
        first, *changes = used.split()
        pairs = (each.split(":") for each in changes)
        self._counts = {0: int(first)} | {int(steps): int(count) for steps, count in pairs}
        super().__init__(sorted({*self._counts.values()}, reverse=True))

    @property
    def threads(self) -> int:
        """The number of threads of the next step."""
        return self._counts[max(steps for steps in self._counts if steps <= self._state.steps)]

    def _took(self, seconds: float) -> None:  # noqa: ARG002 - nothing is measured
        self._state.steps += 1
