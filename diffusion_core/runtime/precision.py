"""The precision of the network: float32, or bfloat16 on devices with hardware for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch


class Precision(NamedTuple):
    """The dtype of the network's matrix products.

    Weights, the loss, accumulated gradients, updates and the statistics of normalisation are always float32.

    Attributes:
        dtype: float32 or bfloat16.
        reason: why it was chosen.
    """

    dtype: torch.dtype
    reason: str

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}, because {self.reason}"


def choose_precision(precision: str, device: torch.device) -> Precision:
    """Return the precision to compute in.

    Args:
        precision: "float32", "bfloat16", or "auto" for bfloat16 if the device has hardware for it.
        device: the device of the network.

    Raises:
        ValueError: the precision is unknown, or the device has no hardware for it.
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
    """Return the name of the hardware that multiplies bfloat16, or None."""
    if device.type == "cuda":
        with torch.cuda.device(device):  # PyTorch checks the current device
            return torch.cuda.get_device_name() if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if device.type == "cpu" and torch.cpu._is_amx_tile_supported():
        return "AMX"
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return "AVX512-BF16"
    return None


@contextmanager
def exact_float32() -> Iterator[None]:
    """Disable TF32 in the block, so that CUDA multiplies in full float32."""
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [each.fp32_precision for each in settings]
    for each in settings:
        each.fp32_precision = "ieee"
    try:
        yield
    finally:
        for each, value in zip(settings, before, strict=True):
            each.fp32_precision = value
