"""Memory of the machine that is free."""

from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Return the bytes of memory that are free on the machine, at most the limit of this process's container."""
    free: int = psutil.virtual_memory().available
    try:
        # What the container uses is not taken off, because most of it may be a cache of files.
        return min(free, int((CGROUP / "memory.max").read_text(encoding="ascii")))
    except (OSError, ValueError):
        # There is no such file, or it says "max".
        return free
