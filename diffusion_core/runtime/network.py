"""Bytes that this machine has moved over its network, by the system's counters of its interfaces."""

from pathlib import Path

import psutil

INTERFACES = Path("/sys/class/net")


def bytes_moved() -> int:
    """Return the bytes that all processes of this machine have received and sent since it started.

    Where there is hardware, it counts alone: bridges and tunnels repeat its bytes. A container has none, and all but
    its loopback counts.
    """
    counted = psutil.net_io_counters(pernic=True)
    hardware = {name for name in counted if (INTERFACES / name / "device").exists()}
    names = hardware or {name for name in counted if not name.startswith("lo")}
    return sum(counted[name].bytes_recv + counted[name].bytes_sent for name in names)
