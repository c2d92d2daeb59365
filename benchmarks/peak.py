"""Counts the operations of a training step, and measures the device's rate in a matrix product."""

import statistics
import time

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

PRODUCTS = 20
REPEATS = 5


def step_flop(loss: nn.Module, images: Tensor) -> int:
    """Return the floating-point operations of a loss and its gradient, in matrix products and convolutions.

    Element-wise operations are not counted; the optimizer has only these.
    """
    with FlopCounterMode(display=False) as counter:
        loss(images).backward()
    return int(counter.get_total_flops())


def matrix_rate(size: int, device: torch.device) -> float:
    """Return the floating-point operations per second of bfloat16 products of square matrices."""
    left, right = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    product = left @ right
    seconds = []
    # The first repeat warms up.
    for _ in range(1 + REPEATS):
        _wait(device)
        began = time.perf_counter()
        for _ in range(PRODUCTS):
            torch.mm(left, right, out=product)
        _wait(device)
        seconds.append((time.perf_counter() - began) / PRODUCTS)
    return 2.0 * size**3 / statistics.median(seconds[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
