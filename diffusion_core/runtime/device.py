"""Selects the device, the number of processes, the precision, compilation and threads."""

import os
from typing import Literal

import torch
from torch import Tensor

from diffusion_core.errors import UserError
from diffusion_core.runtime.distributed import Ranks, local_count, local_rank
from diffusion_core.runtime.precision import Precision, choose_precision
from diffusion_core.runtime.threads import ThreadChoice, ThreadReplay, candidates


def choose_device(wanted: str) -> torch.device:
    """Return the device of this process.

    Each of several processes on a machine gets its own GPU.

    Args:
        wanted: the value of DIFFUSION_DEVICE: "cuda", "mps", "cpu", or "auto" for the first of these that exists.

    Raises:
        UserError: this machine does not have the device, or there are more processes than devices.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = next(name for name, there in available.items() if there) if wanted == "auto" else wanted
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
    """Return why no CUDA GPU is available, with the remedy if this build of PyTorch has no CUDA."""
    if torch.version.cuda:
        return "PyTorch finds none"
    return "this PyTorch is built without CUDA (https://pytorch.org/get-started/locally has builds with it)"


def choose_processes(wanted: Literal["auto"] | int, device: torch.device) -> int:
    """Return how many processes share the work on this machine.

    Args:
        wanted: the value of DIFFUSION_PROCESSES; "auto" is one process per CUDA GPU, else one.
        device: the device of the work.

    Raises:
        UserError: there are more processes than devices.
    """
    if wanted == "auto":
        return _devices(device.type) if device.type == "cuda" else 1
    if wanted > _devices(device.type):
        raise UserError(
            f"DIFFUSION_PROCESSES is {wanted}, and this machine has {_devices(device.type)}"
            f" {_names(device.type)}: set it to at most that number, or to auto"
        )
    return wanted


def choose_dtype(wanted: str, device: torch.device) -> Precision:
    """Return the precision for the value of DIFFUSION_PRECISION, with its reason.

    Raises:
        UserError: the device has no hardware for it.
    """
    try:
        return choose_precision(wanted, device)
    except ValueError as error:
        raise UserError(f"DIFFUSION_PRECISION: {error}") from None


def choose_compiled(wanted: str, device: torch.device) -> bool:
    """Return whether to compile the network: "on", "off", or "auto" for only on a CUDA GPU.

    On two CPU cores, compiling took 82 s and did not make a training step faster.
    """
    return device.type == "cuda" if wanted == "auto" else wanted == "on"


def choose_threads(wanted: int | str, device: torch.device, ranks: Ranks) -> ThreadChoice | None:
    """Return the `ThreadChoice` of a training on a CPU with one process, else None.

    Args:
        wanted: the value of DIFFUSION_THREADS: "auto", a number, or what `ThreadReplay` takes.
        device: the device of the training.
        ranks: its processes.
    """
    if device.type != "cpu" or ranks.count > 1:
        return None
    if wanted == "auto":
        return ThreadChoice(candidates(torch.get_num_threads()))
    return ThreadChoice((wanted,)) if isinstance(wanted, int) else ThreadReplay(wanted)


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _devices(kind: str) -> int:
    return {"cuda": torch.cuda.device_count, "mps": lambda: 1, "cpu": cores}[kind]()


def _names(kind: str) -> str:
    return {"cuda": "CUDA GPUs", "mps": "GPU", "cpu": "processor cores"}[kind]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on the device, without host-device synchronisation on CUDA.

    Only a copy from pinned memory is asynchronous. PyTorch keeps that memory until the copy is done.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
