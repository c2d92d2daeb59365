"""Copies from the host to a device."""

import torch
from torch import Tensor


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on the device; the host waits for no CUDA GPU.

    On Apple's GPUs it does wait: there the source of a copy that nobody waits for may be freed before it is read
    (PyTorch issue 139550).
    """
    return tensor.to(device, non_blocking=device.type == "cuda")
