"""Root-mean-square normalisation over channels, with its own backward pass.

    n = x r,  r = 1 / rms(x),  y = n a + b            (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467)
    dx = r (w - n mean(w n)),  w = dy a               with means over the channels of a pixel
    da = sum(dy n),  db = sum(dy)                     over the pixels of an image

Written out, an activation is kept once for the backward pass and not once an operation, and whatever precision it comes
in is the one it leaves in: squares alone are added up in float32 or better. Both matter on a CPU, where half of a
training step in bfloat16 went into copies from one type to another.
"""

from typing import Any

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / |x| * g * sqrt(C) over the channels of (B, C, H, W), optionally times (scale + 1) plus shift, (B, C) each."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, dim, 1, 1))

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        gain = self.g.reshape(1, 1, -1)
        if scale is not None:
            gain = gain * (scale.unsqueeze(1) + 1.0)
        offset = None if shift is None else shift.unsqueeze(1).to(x.dtype)
        normalised: Tensor = _RMSNorm.apply(pixels(x), gain.to(x.dtype), offset)  # type: ignore[no-untyped-call]
        return image(normalised, x)


def pixels(x: Tensor) -> Tensor:
    """Return images, (B, C, H, W), as rows of pixels, (B, H W, C): a view where memory is laid out channels last."""
    return x.flatten(2).transpose(1, 2)


def image(rows: Tensor, like: Tensor) -> Tensor:
    """Return rows of pixels, (B, H W, C), as images of the height and width of `like`, laid out channels last."""
    images: Tensor = rows.transpose(1, 2).unflatten(2, like.shape[2:])
    return images


def _inverse_rms(x: Tensor) -> Tensor:
    if x.dtype == torch.bfloat16:
        # A product of matrices adds up in float32, and takes half the time of a sum.
        squares = (x.square() @ x.new_ones(x.shape[-1], 1)).float()
    else:
        squares = x.to(torch.promote_types(x.dtype, torch.float32)).square().sum(dim=-1, keepdim=True)
    inverse: Tensor = squares.clamp(min=1e-24).rsqrt() * x.shape[-1] ** 0.5
    return inverse.to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    """y of x, (B, N, C), a and b, (B or 1, 1, C); b may be None. Can be differentiated twice."""

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
            # Someone differentiates this gradient, for which r must be known as a function of x.
            inverse = _inverse_rms(x)
        scaled = dy * inverse
        product = scaled * x  # dy n
        da = product.sum(1 if a.shape[0] == x.shape[0] else (0, 1), keepdim=True)
        db = dy.sum(1, keepdim=True) if ctx.has_offset else None
        along = product @ a.transpose(1, 2) * inverse.square()
        dx = torch.addcmul(scaled * a, x, along, value=-1.0 / x.shape[-1])
        return dx, da, db
