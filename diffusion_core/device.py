"""Which device the work runs on."""

import torch

from diffusion_core.environment import Environment
from diffusion_core.errors import UserError


def choose_device(environment: Environment) -> torch.device:
    """Return the device that DIFFUSION_DEVICE names; "auto" takes CUDA, then Apple's GPU, then the CPU.

    Raises:
        UserError: the named device is not on this machine.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if environment.device == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    if not available[environment.device]:
        raise UserError(f"DIFFUSION_DEVICE is {environment.device}, which this machine does not have: set it to auto")
    return torch.device(environment.device)
