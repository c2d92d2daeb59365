"""The machine: processor cores and their use by other processes, and memory."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from diffusion_core.config.environment import Environment
from diffusion_core.doctor.diagnosis import Diagnosis, ok, problem, warning
from diffusion_core.runtime.device import cores
from diffusion_core.stages.memory import free_memory

CGROUP = Path("/sys/fs/cgroup")
# Seconds over which the use of the cores is measured.
SECONDS = 0.4
# Cores that other processes may use without a warning, and the share of a core that makes a process worth naming.
BUSY_CORES = 0.5
BUSY_SHARE = 0.25
MOST_SHOWN = 3

GIB = 2**30
# The demo's training takes less than the first; a small U-Net of photographs takes about the second.
LEAST_MEMORY = 0.5 * GIB
LITTLE_MEMORY = 2 * GIB


def processors(environment: Environment) -> Iterator[Diagnosis]:
    """Check how many cores this process may use, how busy others keep them, and that PyTorch's threads fit them.

    Beside busy processes each parallel loop of PyTorch waits for the thread that lost its core.
    """
    allowed = min(float(cores()), _quota())
    busy, names = _busy()
    shown = f"{allowed:g} of the machine's {psutil.cpu_count()} cores may be used"
    if busy >= BUSY_CORES and busy > BUSY_SHARE * allowed:
        remedy = "stop them or wait, because PyTorch's threads wait for one another"
        if environment.threads != "auto":
            remedy += "; DIFFUSION_THREADS=auto adapts their number"
        yield warning(
            f"{shown}, and others keep {busy:.1f} busy ({', '.join(names) or 'none of them visible'})", remedy
        )
    else:
        yield ok(f"{shown}, and others keep {busy:.1f} busy")
    # The threads of another training are a text.
    threads = environment.threads if isinstance(environment.threads, int) else torch.get_num_threads()
    if threads > max(allowed, 1.0):
        name = "DIFFUSION_THREADS" if threads == environment.threads else "OMP_NUM_THREADS"
        yield warning(
            f"PyTorch has {threads} threads for the time of {allowed:g} cores", f"set {name}={max(int(allowed), 1)}"
        )
    elif threads <= allowed / 2 and "OMP_NUM_THREADS" in os.environ:
        yield warning(f"OMP_NUM_THREADS gives PyTorch {threads} of {allowed:g} cores", "unset it, or raise it")


def memory(_: Environment) -> Iterator[Diagnosis]:
    """Check that there is memory to train."""
    free = free_memory()
    sentence = f"{free / GIB:.1f} GiB of memory are free"
    remedy = "end other processes, or give the container more; docs/performance.md has what a training takes"
    if free < LEAST_MEMORY:
        yield problem(sentence, remedy)
    elif free < LITTLE_MEMORY:
        yield warning(sentence, remedy)
    else:
        yield ok(sentence)


def _quota() -> float:
    """Return how many cores' time the container has, by either version of cgroups; infinity without a limit."""
    with suppress(OSError, ValueError):
        quota, period = (CGROUP / "cpu.max").read_text(encoding="ascii").split()
        return int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota, period = (
            (CGROUP / f"cpu/cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period")
        )
        if int(quota) > 0:
            return int(quota) / int(period)
    return float("inf")


def _busy() -> tuple[float, list[str]]:
    """Return how many of this process's cores others use, and the processes that use most, by name and number."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(psutil.cpu_count() or 1)
    others = [each for each in psutil.process_iter(["name"]) if each.pid != os.getpid()]
    psutil.cpu_percent(percpu=True)
    for each in others:
        with suppress(psutil.Error):
            each.cpu_percent()
    time.sleep(SECONDS)
    busy = [share / 100 for cpu, share in enumerate(psutil.cpu_percent(percpu=True)) if cpu in usable]
    shares = []
    for each in others:
        with suppress(psutil.Error):
            shares.append((each.cpu_percent() / 100, f"{each.info['name']}, process {each.pid}"))
    return sum(busy), [name for share, name in sorted(shares, reverse=True)[:MOST_SHOWN] if share >= BUSY_SHARE]
