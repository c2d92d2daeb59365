"""Check that each device of this machine computes correctly, in each way that training on it would use."""

import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict

import torch

from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.runtime.compilation import compiler_problem
from diffusion_core.runtime.compile_cache import use_compile_cache
from diffusion_core.runtime.device import choose_compiled, choose_device, choose_dtype, why_no_cuda
from diffusion_core.self_check.comparison import Verdict, cannot_run
from diffusion_core.self_check.device import check_device


def run(environment: Environment, as_json: bool = False) -> None:
    """Print one line per check, or all checks as JSON.

    Raises:
        UserError: DIFFUSION_DEVICE names a device that this machine does not have.
        SystemExit: with code 1, if a check failed.
    """
    versions = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    if environment.device != "auto":
        choose_device(environment.device)  # raises an error for a missing device
    devices = [each for each in _devices() if environment.device in ("auto", each.type)]
    if not as_json:
        print(", ".join(f"{name} {version}" for name, version in versions.items() if version))
        if not torch.cuda.is_available():
            print(f"no CUDA GPU: {why_no_cuda()}")
    checks = []
    for device in devices:
        for verdict in _verdicts(device, environment):
            checks.append({"device": str(device), "name": _name(device), **asdict(verdict)})
            if not as_json:
                print(f"{device} {_name(device)}  {verdict}", flush=True)
    failed = sum(not check["passed"] for check in checks)
    if as_json:
        print(json.dumps({"versions": versions, "checks": checks}, indent=2))
    else:
        print(f"{failed} of {len(checks)} checks failed" if failed else f"{len(checks)} of {len(checks)} checks passed")
    if failed:
        sys.exit(1)


def _verdicts(device: torch.device, environment: Environment) -> Iterator[Verdict]:
    # A busy or broken device must not prevent the checks of the others.
    try:
        compiled = wanted = choose_compiled(environment.compile, device)
        if wanted and (problem := compiler_problem(device)) is not None:
            yield Verdict("compiled", False, problem=f"cannot run ({problem}); training runs without, slower")
            compiled = False
        if compiled:
            use_compile_cache(environment.compile_cache, device)
        dtype, replayed = choose_dtype(environment.precision, device).dtype, wanted and device.type == "cuda"
        yield from check_device(device, dtype, compiled=compiled, replayed=replayed)
    except (RuntimeError, UserError) as error:
        yield cannot_run("this device", error)


def _devices() -> Iterator[torch.device]:
    yield torch.device("cpu")
    yield from (torch.device("cuda", index) for index in range(torch.cuda.device_count()))
    if torch.backends.mps.is_available():
        yield torch.device("mps")


def _name(device: torch.device) -> str:
    if device.type != "cuda":
        return platform.machine()
    try:
        return torch.cuda.get_device_name(device)
    except RuntimeError as error:
        return f"({' '.join(str(error).split())[:80]})"
