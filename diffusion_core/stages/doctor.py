"""Look whether this machine computes what it is told, on every device and in every way that a training may take."""

import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict

import torch

from diffusion_core.device import choose_compiled
from diffusion_core.environment import Environment
from diffusion_core.runtime.compilation import compiler_problem
from diffusion_core.runtime.compile_cache import use_compile_cache
from diffusion_core.training.precision import choose_precision
from diffusion_core.training.self_check import Verdict, check_device


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
    compiled = choose_compiled(environment, device)
    if compiled and (problem := compiler_problem(device)) is not None:
        yield Verdict("compiled", False, problem=f"{problem}; training runs without, slower")
        compiled = False
    if compiled:
        use_compile_cache(environment.compile_cache, device)
    yield from check_device(
        device, choose_precision("auto", device).dtype, compiled=compiled, replayed=device.type == "cuda"
    )


def _devices() -> Iterator[torch.device]:
    yield torch.device("cpu")
    yield from (torch.device("cuda", index) for index in range(torch.cuda.device_count()))
    if torch.backends.mps.is_available():
        yield torch.device("mps")


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
