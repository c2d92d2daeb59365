"""Layers of the U-Net. Parameter names are those of denoising-diffusion-pytorch, so that its weights fit."""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_core.networks.norm import RMSNorm


class SinusoidalPosEmb(nn.Module):
    """cat(sin, cos) of t at `dim` / 2 frequencies from 1 to 1 / theta.

    Args:
        dim: size of the embedding; even, at least 4.
        theta: the inverse of the lowest frequency.
    """

    frequencies: Tensor

    def __init__(self, dim: int, theta: float = 10000.0) -> None:
        super().__init__()
        half = dim // 2
        frequencies = torch.exp(torch.arange(half) * -(math.log(theta) / (half - 1)))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """Return the embedding, (B, dim), of timesteps t, (B,)."""
        angles = t[:, None] * self.frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


class Block(nn.Module):
    """3x3 convolution, normalisation, scale and shift by the time embedding, SiLU, dropout.

    Args:
        dim: channels of the input.
        dim_out: channels of the output.
        dropout: dropout probability, in [0, 1).
    """

    def __init__(self, dim: int, dim_out: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, dim_out, 3, padding=1)
        self.norm = RMSNorm(dim_out)
        self.act = nn.SiLU()
        self.dropout = nn.Dropout(dropout) if dropout > 0.0 else nn.Identity()

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Return the output, (B, dim_out, H, W); scale and shift are (B, dim_out)."""
        out: Tensor = self.dropout(self.act(self.norm(self.proj(x), scale, shift)))
        return out


class ResnetBlock(nn.Module):
    """Two blocks with a residual connection; the time embedding scales and shifts the first.

    Args:
        dim: channels of the input.
        dim_out: channels of the output.
        time_emb_dim: size of the time embedding.
        dropout: dropout probability of the first block, in [0, 1).
    """

    def __init__(self, dim: int, dim_out: int, *, time_emb_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_emb_dim, dim_out * 2))
        self.block1 = Block(dim, dim_out, dropout)
        self.block2 = Block(dim_out, dim_out)
        self.res_conv = nn.Conv2d(dim, dim_out, 1) if dim != dim_out else nn.Identity()

    def forward(self, x: Tensor, time_emb: Tensor, skip: Tensor | None = None) -> Tensor:
        """Return the output, (B, dim_out, H, W).

        Args:
            x: (B, dim, H, W), or fewer channels with a skip connection.
            time_emb: (B, time_emb_dim).
            skip: the skip connection's channels, appended to those of x. They are concatenated in this block, so that
                torch.compile fuses it.
        """
        if skip is not None:
            # Dynamo traces no autograd.Function that torch.func supports too, and an eager one would gain nothing.
            compiled = torch.compiler.is_compiling()
            x = _Concatenation.apply(x, skip) if compiled else torch.cat((x, skip), dim=1)  # type: ignore[no-untyped-call]
        scale, shift = self.mlp(time_emb).chunk(2, dim=1)
        h = self.block2(self.block1(x, scale, shift))
        out: Tensor = h + self.res_conv(x)
        return out


class _Concatenation(torch.autograd.Function):
    """cat((x, skip), dim=1) with dense gradients. Those of torch.cat are slices, which the next layers would copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, skip: Tensor) -> Tensor:
        ctx.channels = x.shape[1]
        return torch.cat((x, skip), dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = gradients
        x, skip = gradient[:, : ctx.channels], gradient[:, ctx.channels :]
        return x.contiguous(memory_format=torch.channels_last), skip.contiguous(memory_format=torch.channels_last)


class Downsample(nn.Sequential):
    """Halve height and width: a pixel unshuffle by 2, then a 1x1 convolution.

    Both are computed as one convolution of stride 2, which moves no pixels into channels. The children hold the weights
    under denoising-diffusion-pytorch's names, and are not called.

    Args:
        dim: channels of the input.
        dim_out: channels of the output.
    """

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__(nn.PixelUnshuffle(2), nn.Conv2d(dim * 4, dim_out, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output, (B, dim_out, H / 2, W / 2)."""
        convolution = cast(nn.Conv2d, self[1])
        return F.conv2d(x, convolution.weight.view(-1, x.shape[1], 2, 2), convolution.bias, stride=2)


class Upsample(nn.Sequential):
    """Double height and width: nearest neighbour, then a 3x3 convolution.

    Both are computed as one transposed convolution of stride 2, which needs 16 products per input pixel and channel
    instead of 36, and never holds the doubled input. The children hold the weights under denoising-diffusion-pytorch's
    names, and are not called.

    Args:
        dim: channels of the input.
        dim_out: channels of the output.
    """

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(dim, dim_out, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output, (B, dim_out, 2 H, 2 W)."""
        convolution = cast(nn.Conv2d, self[1])
        # Rows 2, 1 + 2, 0 + 1 and 0 of the 3x3 kernel, and its columns likewise: those that read the same pixel before
        # doubling.
        kernel = convolution.weight.transpose(0, 1).flip(2, 3)
        kernel = F.pad(kernel, (0, 0, 0, 1)) + F.pad(kernel, (0, 0, 1, 0))
        kernel = F.pad(kernel, (0, 1)) + F.pad(kernel, (1, 0))
        return F.conv_transpose2d(x, kernel, convolution.bias, stride=2, padding=1)
