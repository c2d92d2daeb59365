"""Progress of long work: a bar on a terminal, and elsewhere a line at least every 30 seconds.

    train: 12,800 of 25,600 images, 1,240 images/s, 10 s left, loss 0.0312

`Progress` prints such lines, and `percent` reads them: a flow shows them on Prefect's pages.
"""

import math
import re
import sys
import time
from types import TracebackType

from tqdm import tqdm

# Seconds of measured work before the first line, which says how long the whole takes; then between two lines.
FIRST_SECONDS, SECONDS = 5.0, 30.0
# Seconds between two reports of a caller that asks whether one is due: a bar moves more often than lines come.
BAR_SECONDS = 1.0

# Bytes are shown as megabytes; other amounts as they are.
_SHOWN_AS = {"B": (1e6, "MB")}
_NUMBER = r"[\d,.e+-]+"
_LINE = re.compile(rf"(?P<task>[^:]+): (?P<done>{_NUMBER}) of (?P<total>{_NUMBER}) \w+, {_NUMBER} \w+/s, \d.* left\b.*")


class Progress:
    """Shows how much is done, the rate, and the time that is left.

    The first call of `update` or `add` starts the clock, so that the rate is without what comes before, as compiling.

    Args:
        task: what is done, for example the stage.
        total: amount of all of it, or None if that is not known yet.
        unit: of the amount: the plural of a word, or "B" for bytes.
        is_shown: whether anything is shown.
    """

    def __init__(self, task: str, total: float | None, unit: str, is_shown: bool = True) -> None:
        self.total = total
        self._task, self._unit = task, unit
        self._is_shown = is_shown
        # None shows the bar only on a terminal.
        disable = None if is_shown else True
        self._bar = tqdm(total=total, unit=f" {unit}", unit_scale=True, desc=task, disable=disable)
        self._began: tuple[float, float] | None = None
        self._done = 0.0
        self._due = 0.0

    @property
    def is_due(self) -> bool:
        """Whether `update` would show something now, for callers to whom the amount is costly."""
        return self._is_shown and time.monotonic() >= self._due

    def update(self, done: float, note: str = "", at_most: float = math.inf) -> None:
        """Show the amount that is done of the whole, if it is time.

        Args:
            done: amount that is done by now.
            note: what else to show, for example the loss.
            at_most: seconds after which the work ends, however much is done.
        """
        now, self._done = time.monotonic(), done
        if self._began is None:
            self._began = now, done
            self._due = now + (FIRST_SECONDS if self._bar.disable else BAR_SECONDS)
            self._bar.initial = done
        if not self._bar.disable:
            self._bar.total = self.total
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._bar.n)
            self._due = now + BAR_SECONDS
        elif self.is_due and done > self._began[1]:
            self._print(done, now, note, at_most)
            self._due = now + SECONDS

    def add(self, amount: float) -> None:
        """Show that so much more is done, if it is time."""
        self.update(self._done + amount)

    def close(self) -> None:
        """End the bar."""
        self._bar.close()

    def _print(self, done: float, now: float, note: str, at_most: float) -> None:
        assert self._began is not None
        divisor, unit = _SHOWN_AS.get(self._unit, (1.0, self._unit))
        rate = (done - self._began[1]) / (now - self._began[0])
        whole, left = "", ""
        if self.total is not None:
            whole = f" of {_number(self.total / divisor)}"
            left = f", {duration(min(max(self.total - done, 0.0) / rate, at_most))} left"
        line = f"{self._task}: {_number(done / divisor)}{whole} {unit}, {_number(rate / divisor)} {unit}/s{left}"
        print(line + (f", {note}" if note else ""), file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


def percent(line: str) -> tuple[str, float] | None:
    """Return task and percentage of a line of `Progress`, or None for another line."""
    found = _LINE.fullmatch(line)
    if found is None:
        return None
    done, total = (float(found[name].replace(",", "")) for name in ("done", "total"))
    return found["task"], 100.0 * done / total if total else 100.0


def duration(seconds: float) -> str:
    """Return a time in the unit that a person would use: 40 s, 12 min, 3 h 20 min, 2 d 4 h."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == round(value) else f"{value:.2g}"
