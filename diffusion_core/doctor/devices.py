"""Devices: driver and build of PyTorch, precision, and whether each computes correctly in the ways of a training."""

import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress

import torch

from diffusion_core.config.environment import Environment
from diffusion_core.doctor.diagnosis import Diagnosis, ok, problem
from diffusion_core.errors import UserError
from diffusion_core.runtime.compilation import compiler_problem
from diffusion_core.runtime.compile_cache import use_compile_cache
from diffusion_core.runtime.device import choose_compiled, choose_dtype, why_no_cuda
from diffusion_core.self_check.comparison import Verdict, cannot_run
from diffusion_core.self_check.device import check_device

SECONDS_TO_ANSWER = 5.0
OTHER_BUILD = (
    "the results of a training stay right, because it checks itself, but it is slower; try another version of PyTorch"
    " or of the driver"
)


def driver(_: Environment) -> Iterator[Diagnosis]:
    """Check that PyTorch can use the NVIDIA GPUs that the driver has."""
    gpus = _nvidia_gpus()
    if torch.cuda.is_available():
        yield from (ok(gpu) for gpu in gpus)
    elif not gpus:
        yield ok(f"no CUDA GPU: {why_no_cuda()}")
    elif not torch.version.cuda:
        yield problem(f"PyTorch cannot use {gpus[0]}: its build has no CUDA", "https://pytorch.org/get-started/locally")
    else:
        yield problem(
            f"PyTorch for CUDA {torch.version.cuda} cannot use {gpus[0]}: {_why_not()}",
            "update the driver, or install a PyTorch for it: https://pytorch.org/get-started/locally",
        )


def computation(environment: Environment) -> Iterator[Diagnosis]:
    """Compute a training step on each device, in each way that training on it would use, and compare the results."""
    for device in _devices():
        if environment.device in ("auto", device.type):
            with suppress(UserError):
                # The next line reports one that the device cannot compute in.
                yield ok(f"{device} computes in {choose_dtype(environment.precision, device)}")
            yield from (_diagnosis(device, verdict) for verdict in _verdicts(device, environment))


def _diagnosis(device: torch.device, verdict: Verdict) -> Diagnosis:
    sentence = f"{device} {_name(device)}  {verdict}"
    return ok(sentence) if verdict.passed else problem(sentence, OTHER_BUILD)


def _verdicts(device: torch.device, environment: Environment) -> Iterator[Verdict]:
    # A busy or broken device must not prevent the checks of the others.
    try:
        compiled = wanted = choose_compiled(environment.compile, device)
        if wanted and (why := compiler_problem(device)) is not None:
            yield Verdict("compiled", False, problem=f"cannot run ({why}); training runs without, slower")
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


def _nvidia_gpus() -> list[str]:
    """Return the GPUs of NVIDIA's driver, with its version and the memory in use, or [] without a driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    fields = "name,driver_version,memory.used,memory.total"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS_TO_ANSWER)
    except subprocess.SubprocessError:
        return []
    rows = (line.split(", ") for line in done.stdout.splitlines() if line.count(", ") == 3)
    return [f"{name} with driver {version}, {used} of {total} in use" for name, version, used, total in rows]


def _why_not() -> str:
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return " ".join(str(error).split())[:300]
    return "it names no reason"
