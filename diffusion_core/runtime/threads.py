"""How many OpenMP threads a training on a CPU uses, chosen by measuring steps.

All cores are best on a quiet machine. Beside another busy process they are the worst choice: each parallel loop waits
for the thread that lost its core. Beside one, on two cores, the demo trains at a third of its speed with two threads
and at 0.85 of it with one (benchmarks/busy_cpu.json).

The number of threads changes the rounding of gradients. So it is training state: a checkpoint holds it, and on a quiet
machine the step's number alone decides when another number is tried.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

import torch

# Steps of one trial; the fastest counts. The first step with another count is slower: it took 1.4 times as long.
TRIAL_STEPS = 3
# Steps before the first trial: one in which PyTorch and its allocator warm up, then as many as a trial has.
START_STEPS = 1 + TRIAL_STEPS
# While the first trial's choice is not the largest count, a larger one is tried at this step, and whenever the number
# has doubled. The first trial may have met a busy process.
AGAIN_STEP = 100
# A smaller count replaces a larger one if it is so many times as fast. Noise of 10% hardly ever adds up to that.
GAIN = 1.2
# Smaller counts than one that takes so many times the fastest's seconds are not tried: they would be slower still.
LOSS = 1.5
# A trial ends after a first step that takes so many times the fastest's seconds; beside a busy process it may be 30.
# Halves and doubles of a count differ by less on a quiet machine, where noise must not decide how long a trial lasts.
GIVE_UP = 3.0
# The machine is busy if steps take so many times their best seconds, over so many stretches in a row. A stretch is one
# step, or the steps of one second: scheduling makes short steps fast and slow by turns.
SLOW = 1.7
SLOW_STRETCHES = 3
STRETCH_SECONDS = 1.0
# Seconds of training after which a larger count is tried again on a busy machine. The wait doubles with each trial that
# does not pay, and whenever the machine is busy again soon.
FIRST_WAIT = 30.0
LONGEST_WAIT = 600.0

log = logging.getLogger(__name__)


def candidates(cores: int) -> tuple[int, ...]:
    """Return the counts worth a trial: all cores, halves of them, down to one thread.

    Raises:
        ValueError: `cores` is below 1.
    """
    if cores < 1:
        raise ValueError(f"cores is {cores}; it must be at least 1")
    return tuple(cores >> halvings for halvings in range(cores.bit_length()))


def _doubled(steps: int) -> bool:
    """Return whether `steps` is `AGAIN_STEP`, or that number doubled once or more."""
    times, remainder = divmod(steps, AGAIN_STEP)
    return remainder == 0 and times.bit_count() == 1


@dataclass
class _State:
    """What a checkpoint holds. Durations are seconds a step.

    Args:
        count: threads in use, trials aside.
        chosen: the most threads that trials have chosen so far; None before the first trial has ended.
        steps: steps taken.
        best: the shortest duration by count.
        last: the last steps with `count`, at most `TRIAL_STEPS`.
        stretch_seconds: of the stretch that has not ended.
        stretch_steps: of the stretch that has not ended.
        slow: the slow stretches in a row, up to now, at most `SLOW_STRETCHES`.
        rest: seconds of training since the last trial.
        wait: seconds of training from the last trial to the next, on a busy machine.
        futile: the last trial of smaller counts changed nothing, so the next waits.
        rivals: counts of the trial under way; the first is being tried.
        taken: steps with the count that is being tried.
        tried: duration by count in the trial under way, with that of `count`.
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


class ThreadChoice:
    """Sets PyTorch's number of threads for each training step; for a CPU and one process alone.

    At fixed steps near the start it tries the smaller counts. It tries them again when steps become slow, and returns
    to a larger count once that is faster. Call `close` when the training ends.

    Args:
        candidates: counts to choose from, falling, each at least 1. With a single one nothing is ever tried.
        clock: returns seconds; only differences count.

    Raises:
        ValueError: `candidates` is empty, does not fall, or has a number below 1.
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

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Set the number of threads for the one training step that runs within, and time it.

        A step that raises an error is not counted.
        """
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        began = self._clock()
        yield
        self._took(self._clock() - began)

    def close(self) -> None:
        """Set the number of threads that the process had when this was made."""
        torch.set_num_threads(self._before)

    def state(self) -> dict[str, Any]:
        """Return, as JSON, what `restore` needs to go on with the same numbers of threads."""
        content = asdict(self._state)
        for name in ("best", "tried"):  # JSON's keys are strings
            content[name] = {str(count): seconds for count, seconds in content[name].items()}
        return {"candidates": list(self.candidates), **content}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` returned.

        If it was chosen from other candidates, as on another machine, measuring begins again with the largest.
        """
        content = dict(state)
        if tuple(content.pop("candidates")) != self.candidates:
            self._state = _State(self.candidates[0])
            return
        for name in ("best", "tried"):
            content[name] = {int(count): seconds for count, seconds in content[name].items()}
        self._state = _State(**content)

    # --- the rules

    def _took(self, seconds: float) -> None:
        """Learn from a step, and decide whether a trial begins, goes on or ends."""
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
        elif state.count < state.chosen:  # the machine was busy, so the time may decide
            if state.rest >= state.wait and len(state.last) == TRIAL_STEPS:
                self._begin(larger, min(state.last))
        elif _doubled(state.steps):
            self._begin(larger, min(state.last))

    def _busy(self, seconds: float) -> bool:
        """Return whether the stretch that this step ends is the last of several slow ones."""
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
        """Begin to compare `rivals`, in this order, with the count in use, which takes `seconds` a step."""
        if rivals:
            self._state.rivals, self._state.tried = rivals, {self._state.count: seconds}

    def _compare(self, seconds: float) -> None:
        """Take in a step of the trial under way; end the trial where what is left of it is not worth its time."""
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
        """Keep the best of the counts that were tried."""
        state = self._state
        # A larger count than the one in use must be faster; a smaller one, faster by a margin.
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
