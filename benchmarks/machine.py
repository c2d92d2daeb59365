"""Describes the machine of a measurement."""

import os
import platform
from pathlib import Path

import torch


def describe() -> dict[str, str | int]:
    """Return the processor or GPU, the number of cores, and versions."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), processor)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor
    # The library's function is not used, because its imports may be missing on a GPU machine.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"device": device, "cores": cores, "python": platform.python_version(), "torch": torch.__version__}
