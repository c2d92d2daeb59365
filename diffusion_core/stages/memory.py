"""Memory of the machine that is free."""

from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Return the bytes of memory that this process may still use: of the machine, and of its container's limit."""
    free: int = psutil.virtual_memory().available
    try:
        limit, used = ((CGROUP / name).read_text(encoding="ascii") for name in ("memory.max", "memory.current"))
        return min(free, int(limit) - int(used))
    except (OSError, ValueError):
        # There is no such file, or it says "max".
        return free
