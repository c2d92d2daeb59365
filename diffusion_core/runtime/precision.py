"""What the network computes in: float32, or bfloat16 where the device multiplies it in hardware."""

from typing import NamedTuple

import torch


class Precision(NamedTuple):
    """The dtype of the network's products, and why it was chosen.

    Weights, the loss, its gradient's sum over micro-batches and all updates stay in float32, and so do the statistics
    of normalisation.
    """

    dtype: torch.dtype
    reason: str

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}, because {self.reason}"


def choose_precision(precision: str, device: torch.device) -> Precision:
    """Return what to compute in.

    Args:
        precision: "float32", "bfloat16" or "auto": bfloat16 where the hardware has it.
        device: where the training runs.

    Raises:
        ValueError: the precision is unknown, or the device lacks it.
    """
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"precision is {precision!r}; it must be auto, float32 or bfloat16")
    hardware = _bfloat16_hardware(device)
    if precision == "bfloat16" and hardware is None:
        raise ValueError(
            f"precision is bfloat16, which this {device.type} device has no hardware for: set it to auto or float32"
        )
    if precision != "auto":
        return Precision(getattr(torch, precision), "it was asked for")
    if hardware is None:
        return Precision(torch.float32, f"this {device.type} device has no hardware for bfloat16")
    return Precision(torch.bfloat16, f"this {device.type} device multiplies it in hardware ({hardware})")


def _bfloat16_hardware(device: torch.device) -> str | None:
    """Return the name of what multiplies bfloat16, or None."""
    if device.type == "cuda":
        with torch.cuda.device(device):  # PyTorch asks the current one
            return torch.cuda.get_device_name() if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if device.type == "cpu" and torch.cpu._is_amx_tile_supported():
        return "AMX"
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return "AVX512-BF16"
    return None
