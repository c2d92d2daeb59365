"""What the network computes in: float32, or bfloat16 where the device multiplies it in hardware."""

import torch


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of the network's products; weights, normalisation of the loss and updates stay in float32.

    Args:
        precision: "float32", "bfloat16" or "auto": bfloat16 where the hardware has it.
        device: where the training runs.
    """
    if precision == "auto":
        return torch.bfloat16 if _has_bfloat16(device) else torch.float32
    dtype: torch.dtype = getattr(torch, precision)
    return dtype


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False
