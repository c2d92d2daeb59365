"""What layers do in another way in eager mode on a CPU, where each operation reads and writes memory.

Normalisation is written as its formula, which a compiler fuses and eager PyTorch does not. Here it has its own backward
pass. Attention computes in other dtypes. Both compute the same function of the same weights
(tests/networks/test_eager_cpu.py). `pays` selects the implementation.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def pays(x: Tensor) -> bool:
    """Whether layers use these implementations for `x`: on a CPU, unless torch.compile is tracing."""
    return x.is_cpu and not torch.compiler.is_compiling()


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Disable autocast if `pays(x)`; under torch.compile do nothing, because it cannot cache such a block."""
    return torch.autocast(x.device.type, enabled=False) if pays(x) else nullcontext()


def rms_norm(x: Tensor, g: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """Return the result of `RMSNorm`, with the backward pass below.

    Args:
        x: (B, C, H, W).
        g: (C,).
        scale: (B, C), or None.
        shift: (B, C), or None.
    """
    gain = g.reshape(1, 1, -1)
    if scale is not None:
        gain = gain * (scale.unsqueeze(1).to(gain.dtype) + 1.0)
    offset = None if shift is None else shift.unsqueeze(1).to(x.dtype)
    rows = x.flatten(2).transpose(1, 2)
    normalised: Tensor = _RMSNorm.apply(rows, gain.to(x.dtype), offset)  # type: ignore[no-untyped-call]
    images: Tensor = normalised.transpose(1, 2).unflatten(2, x.shape[2:])
    return images


class _RMSNorm(torch.autograd.Function):
    """y of x, (B, N, C), a and b, (B or 1, 1, C); b may be None. Can be differentiated twice.

        n = x r,  r = 1 / rms(x),  y = n a + b
        dx = r (w - n mean(w n)),  w = dy a               with means over the channels of a pixel
        da = sum(dy n),  db = sum(dy)                     over the pixels of an image

    It saves one activation for the backward pass instead of one per operation, and returns the dtype of x. Without it,
    type conversions took half of a training step in bfloat16.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor | None) -> Tensor:
        inverse = _inverse_rms(x)
        ctx.save_for_backward(x, a, inverse)
        ctx.has_offset = b is not None
        n = x * inverse
        return n.mul_(a) if b is None else torch.addcmul(b, n, a, out=n)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        (dy,) = gradients
        x, a, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():
            # For a second derivative, r must be a differentiable function of x.
            inverse = _inverse_rms(x)
        scaled = dy * inverse
        product = scaled * x  # dy n
        da = product.sum(1 if a.shape[0] == x.shape[0] else (0, 1), keepdim=True)
        db = dy.sum(1, keepdim=True) if ctx.has_offset else None
        along = product @ a.transpose(1, 2) * inverse.square()
        dx = torch.addcmul(scaled * a, x, along, value=-1.0 / x.shape[-1])
        return dx, da, db


def _inverse_rms(x: Tensor) -> Tensor:
    if x.dtype == torch.bfloat16:
        # A matrix product accumulates in float32 and takes half the time of a sum.
        squares = (x.square() @ x.new_ones(x.shape[-1], 1)).float()
    else:
        squares = x.to(torch.promote_types(x.dtype, torch.float32)).square().sum(dim=-1, keepdim=True)
    inverse: Tensor = squares.clamp(min=1e-24).rsqrt() * x.shape[-1] ** 0.5
    return inverse.to(x.dtype)
