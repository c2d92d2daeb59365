"""The parts of the U-Net. Parameter names are those of denoising-diffusion-pytorch, so that its weights fit."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / |x| * g * sqrt(C) over the channels of (B, C, H, W) (Zhang & Sennrich 2019)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = dim**0.5
        self.g = nn.Parameter(torch.ones(1, dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        # In float32 or better, and without torch's vector norm, which takes a tenth of a training step on a CPU.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        inverse = wide.square().sum(dim=1, keepdim=True).clamp(min=1e-24).rsqrt()
        scaled: Tensor = x * inverse * (self.g * self.scale)
        return scaled


class SinusoidalPosEmb(nn.Module):
    """cat(sin, cos) of t at `dim` / 2 frequencies from 1 to 1 / theta; (B,) to (B, dim)."""

    frequencies: Tensor

    def __init__(self, dim: int, theta: float = 10000.0) -> None:
        super().__init__()
        half = dim // 2
        frequencies = torch.exp(torch.arange(half) * -(math.log(theta) / (half - 1)))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


class Block(nn.Module):
    """3x3 convolution, normalisation, scale and shift by the time embedding, SiLU, dropout."""

    def __init__(self, dim: int, dim_out: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, dim_out, 3, padding=1)
        self.norm = RMSNorm(dim_out)
        self.act = nn.SiLU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, scale_shift: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x = self.norm(self.proj(x))
        if scale_shift is not None:
            scale, shift = scale_shift
            x = x * (scale + 1) + shift
        out: Tensor = self.dropout(self.act(x))
        return out


class ResnetBlock(nn.Module):
    """Two blocks around which the input is added; the first is modulated by the time embedding, (B, time_emb_dim)."""

    def __init__(self, dim: int, dim_out: int, *, time_emb_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_emb_dim, dim_out * 2))
        self.block1 = Block(dim, dim_out, dropout)
        self.block2 = Block(dim_out, dim_out)
        self.res_conv = nn.Conv2d(dim, dim_out, 1) if dim != dim_out else nn.Identity()

    def forward(self, x: Tensor, time_emb: Tensor) -> Tensor:
        scale, shift = self.mlp(time_emb)[:, :, None, None].chunk(2, dim=1)
        h = self.block2(self.block1(x, (scale, shift)))
        out: Tensor = h + self.res_conv(x)
        return out


class LinearAttention(nn.Module):
    """Attention whose cost grows with H W and not with its square (Shen et al. 2018), with learned memory."""

    def __init__(self, dim: int, heads: int = 4, dim_head: int = 32, num_mem_kv: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.scale = dim_head**-0.5
        self.norm = RMSNorm(dim)
        self.mem_kv = nn.Parameter(torch.randn(2, heads, dim_head, num_mem_kv))
        self.to_qkv = nn.Conv2d(dim, heads * dim_head * 3, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(heads * dim_head, dim, 1), RMSNorm(dim))

    def forward(self, x: Tensor) -> Tensor:
        b, _, height, width = x.shape
        q, k, v = self.to_qkv(self.norm(x)).reshape(b, 3, self.heads, -1, height * width).unbind(1)
        mem_k, mem_v = self.mem_kv.to(q.dtype).unsqueeze(1).expand(-1, b, -1, -1, -1)
        k, v = torch.cat((mem_k, k), dim=-1), torch.cat((mem_v, v), dim=-1)
        context = k.softmax(dim=-1) @ v.transpose(-1, -2)
        out = context.transpose(-1, -2) @ (q.softmax(dim=-2) * self.scale)
        return self.to_out(out.reshape(b, -1, height, width))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Softmax attention between all pixels (Vaswani et al. 2017), with learned memory."""

    def __init__(
        self, dim: int, heads: int = 4, dim_head: int = 32, num_mem_kv: int = 4, *, fused: bool = True
    ) -> None:
        super().__init__()
        self.heads = heads
        self.attend = F.scaled_dot_product_attention if fused else _plain_attention
        self.norm = RMSNorm(dim)
        self.mem_kv = nn.Parameter(torch.randn(2, heads, num_mem_kv, dim_head))
        self.to_qkv = nn.Conv2d(dim, heads * dim_head * 3, 1, bias=False)
        self.to_out = nn.Conv2d(heads * dim_head, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, height, width = x.shape
        qkv = self.to_qkv(self.norm(x)).reshape(b, 3, self.heads, -1, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        mem_k, mem_v = self.mem_kv.to(q.dtype).unsqueeze(1).expand(-1, b, -1, -1, -1)
        k, v = torch.cat((mem_k, k), dim=-2), torch.cat((mem_v, v), dim=-2)
        out = self.attend(q, k, v)
        return self.to_out(out.transpose(-1, -2).reshape(b, -1, height, width))  # type: ignore[no-any-return]


def _plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return torch.matmul(weights, v)


def downsample(dim: int, dim_out: int) -> nn.Module:
    """Halve height and width: 2x2 pixels into channels, then a 1x1 convolution."""
    return nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(dim * 4, dim_out, 1))


def upsample(dim: int, dim_out: int) -> nn.Module:
    """Double height and width: nearest neighbour, then a 3x3 convolution."""
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(dim, dim_out, 3, padding=1))
