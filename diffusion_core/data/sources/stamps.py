"""What shows that a file has changed."""

import os

# Nanoseconds after which a later change of a file has a later date, on any file system.
CERTAIN = 3 * 10**9


def stamp_of(state: os.stat_result, now: int) -> str | None:
    """Return the dates of a file as text, or None if it may change again without a change of its dates.

    Args:
        state: of the file.
        now: nanoseconds since 1970, read before `state`.
    """
    # Renaming and copying keep the first date and change the second.
    dates = (state.st_mtime_ns, state.st_ctime_ns)
    return " ".join(map(str, dates)) if now - max(dates) > CERTAIN else None
