"""Which devices the work runs on, and how many processes share it."""

import os

import torch

from diffusion_core.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.runtime.cpu_threads import ThreadChoice, candidates
from diffusion_core.training.distributed import Ranks, local_count, local_rank
from diffusion_core.training.precision import Precision, choose_precision


def choose_device(environment: Environment) -> torch.device:
    """Return the device that DIFFUSION_DEVICE names; "auto" takes CUDA, then Apple's GPU, then the CPU.

    Of several processes on a machine, each gets a GPU of its own.

    Raises:
        UserError: the named device is not on this machine, or there are more processes than devices.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind: str = environment.device
    if kind == "auto":
        kind = next(name for name, there in available.items() if there)
    if not available[kind]:
        reason = why_no_cuda() if kind == "cuda" else "PyTorch finds none"
        raise UserError(f"DIFFUSION_DEVICE is {kind}, and {reason}: set it to auto")
    if local_count() > _devices(kind):
        raise UserError(
            f"{local_count()} processes were started, and this machine has {_devices(kind)} {_names(kind)}: set"
            " DIFFUSION_PROCESSES to at most that number"
        )
    return torch.device(kind, local_rank()) if kind == "cuda" else torch.device(kind)


def why_no_cuda() -> str:
    """Return why no CUDA GPU is available, with the remedy where the build of PyTorch is the reason."""
    if torch.version.cuda:
        return "PyTorch finds none"
    return "this PyTorch is built without CUDA (https://pytorch.org/get-started/locally has builds with it)"


def choose_processes(environment: Environment) -> int:
    """Return how many processes DIFFUSION_PROCESSES asks for on this machine; "auto" is one a GPU, or one.

    Raises:
        UserError: there are more of them than devices.
    """
    device = choose_device(environment).type
    if environment.processes == "auto":
        return _devices(device) if device == "cuda" else 1
    if environment.processes > _devices(device):
        raise UserError(
            f"DIFFUSION_PROCESSES is {environment.processes}, and this machine has {_devices(device)}"
            f" {_names(device)}: set it to at most that number, or to auto"
        )
    return environment.processes


def choose_dtype(environment: Environment, device: torch.device) -> Precision:
    """Return the precision that DIFFUSION_PRECISION asks for, with its reason.

    Raises:
        UserError: the device lacks it.
    """
    try:
        return choose_precision(environment.precision, device)
    except ValueError as error:
        raise UserError(f"DIFFUSION_PRECISION: {error}") from None


def choose_compiled(environment: Environment, device: torch.device) -> bool:
    """Return whether the network is compiled: "auto" does it on a CUDA GPU.

    On two CPU cores compiling took 82 s and made a training step no faster.
    """
    if environment.compile == "auto":
        return device.type == "cuda"
    return environment.compile == "on"


def choose_threads(environment: Environment, device: torch.device, ranks: Ranks) -> ThreadChoice | None:
    """Return what chooses the threads of each training step: on a CPU, where one process trains."""
    if device.type != "cpu" or ranks.count > 1:
        return None
    if environment.threads != "auto":
        return ThreadChoice((environment.threads,))
    return ThreadChoice(candidates(torch.get_num_threads()))


def cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _devices(kind: str) -> int:
    return {"cuda": torch.cuda.device_count, "mps": lambda: 1, "cpu": cores}[kind]()


def _names(kind: str) -> str:
    return {"cuda": "CUDA GPUs", "mps": "GPU", "cpu": "processor cores"}[kind]
