"""Keeps the memory of a process, which has passwords in it, off the disk when it crashes."""

import sys


def forbid_core_dumps() -> None:
    """Let this process and all that it starts leave no core dump.

    Linux ignores a limit of 0 bytes where a program takes the dumps (core(5), a pattern that begins with a pipe). A
    limit of 1 byte it heeds in both cases. On Windows this does nothing.
    """
    if sys.platform == "win32":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    lowest = 1 if sys.platform == "linux" else 0
    resource.setrlimit(resource.RLIMIT_CORE, (lowest if hard == resource.RLIM_INFINITY else min(lowest, hard), hard))
