"""Check that each device of this machine computes correctly, in each way that a training on it would take."""

import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict

import torch

from diffusion_core.device import choose_compiled, choose_dtype
from diffusion_core.environment import Environment
from diffusion_core.runtime.comparison import Verdict, cannot_run
from diffusion_core.runtime.compilation import compiler_problem
from diffusion_core.runtime.compile_cache import use_compile_cache
from diffusion_core.training.device_check import check_device


def run(environment: Environment, as_json: bool = False) -> None:
    """Print a table of what was compared, or JSON.

    Raises:
        SystemExit: with code 1, because something is computed wrongly or cannot run.
    """
    versions = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    rows = [(device, verdict) for device in _devices() for verdict in _verdicts(device, environment)]
    if as_json:
        checks = [{"device": _name(device), **asdict(verdict)} for device, verdict in rows]
        print(json.dumps({"versions": versions, "checks": checks}, indent=2))
    else:
        print(", ".join(f"{name} {version}" for name, version in versions.items() if version))
        for device, verdict in rows:
            print(f"{_name(device):24}  {verdict}")
    if not all(verdict.passed for _, verdict in rows):
        sys.exit(1)


def _verdicts(device: torch.device, environment: Environment) -> Iterator[Verdict]:
    compiled = wanted = choose_compiled(environment, device)
    if wanted and (problem := compiler_problem(device)) is not None:
        yield Verdict("compiled", False, problem=f"cannot run ({problem}); training runs without, slower")
        compiled = False
    if compiled:
        use_compile_cache(environment.compile_cache, device)
    dtype, replayed = choose_dtype(environment, device).dtype, wanted and device.type == "cuda"
    try:
        yield from check_device(device, dtype, compiled=compiled, replayed=replayed)
    # One device that is busy or broken must not hide what was found on the others.
    except RuntimeError as error:
        yield cannot_run("this device", error)


def _devices() -> Iterator[torch.device]:
    yield torch.device("cpu")
    yield from (torch.device("cuda", index) for index in range(torch.cuda.device_count()))
    if torch.backends.mps.is_available():
        yield torch.device("mps")


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
