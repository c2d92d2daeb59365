"""The time that a training may take, over all processes that have worked on it."""

import math
import time


class TimeBudget:
    """Counts the time of a training from now on.

    Args:
        minutes: the time it may take, or None for any.
        spent: seconds that earlier processes took, up to the checkpoint that it resumes from.
    """

    def __init__(self, minutes: float | None, spent: float = 0.0) -> None:
        self._limit = math.inf if minutes is None else 60.0 * minutes
        self._began = time.monotonic() - spent

    @property
    def spent(self) -> float:
        """Seconds that the training has taken."""
        return time.monotonic() - self._began

    @property
    def left(self) -> float:
        """Seconds that are left, at least 0; infinite without a limit."""
        return max(0.0, self._limit - self.spent)

    @property
    def is_used_up(self) -> bool:
        """Whether no time is left."""
        return self.left == 0.0
