"""Residual self-attention between the pixels of an image, with learned memory keys and values.

Parameter names are those of denoising-diffusion-pytorch, so that its weights fit.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_core.networks import eager_cpu
from diffusion_core.networks.norm import RMSNorm


class Attention(nn.Module):
    """Softmax attention between all pixels (Vaswani et al. 2017).

    Args:
        dim: channels of the input.
        heads: number of heads.
        dim_head: channels per head.
        num_mem_kv: learned memory keys and values per head.
        fused: use PyTorch's fused kernels; if False, the plain formula.
    """

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
        """Return x plus its attention output, (B, C, H, W)."""
        qkv = _pixels(self.to_qkv(self.norm(x))).unflatten(2, (3, self.heads, -1))
        if eager_cpu.pays(x):
            # On a CPU, PyTorch's fused attention is slower in bfloat16 than in float32: several times for few pixels.
            qkv = qkv.to(torch.promote_types(qkv.dtype, torch.float32))
        q, k, v = qkv.transpose(1, 3).unbind(2)
        mem_k, mem_v = self.mem_kv.to(q.dtype).unsqueeze(1).expand(-1, len(x), -1, -1, -1)
        k, v = torch.cat((mem_k, k), dim=-2), torch.cat((mem_v, v), dim=-2)
        with eager_cpu.without_autocast(x):
            out = self.attend(q, k, v)
        return self.to_out(_image(out.transpose(1, 2).flatten(2).to(x.dtype), x)) + x  # type: ignore[no-any-return]


class LinearAttention(nn.Module):
    """Attention with a cost linear in H W (Shen et al. 2018, arXiv:1812.01243).

    With softmax(Q) over a head's channels and softmax(K) over pixels and memory,
    out = softmax(Q) (softmax(K)^T V) W_out. The matrix products are reordered: softmax(K)^T V = (softmax(K)^T X) W_v
    multiplies small matrices and never computes V = X W_v. W_out is multiplied into this product.

    Args:
        dim: channels of the input.
        heads: number of heads.
        dim_head: channels per head.
        num_mem_kv: learned memory keys and values per head.
    """

    def __init__(self, dim: int, heads: int = 4, dim_head: int = 32, num_mem_kv: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.scale = dim_head**-0.5
        self.norm = RMSNorm(dim)
        self.mem_kv = nn.Parameter(torch.randn(2, heads, dim_head, num_mem_kv))
        self.to_qkv = nn.Conv2d(dim, heads * dim_head * 3, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(heads * dim_head, dim, 1), RMSNorm(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus its attention output, (B, C, H, W)."""
        rows = _pixels(self.norm(x))
        with eager_cpu.without_autocast(x):
            attended = self._attend(rows)
        return self.to_out[1](_image(attended, x)) + x  # type: ignore[no-any-return]

    def _attend(self, x: Tensor) -> Tensor:
        """Return the attention output of pixels, (B, N, C), with that shape."""
        w_q, w_k, w_v = self.to_qkv.weight.flatten(1).to(x.dtype).chunk(3)
        by_head = (self.heads, -1)
        k, mem_k = F.linear(x, w_k), self.mem_kv[0].flatten(0, 1).t().to(x.dtype)
        top = torch.maximum(k.detach().amax(1, keepdim=True), mem_k.detach().amax(0))
        k, mem_k = (k - top).exp(), (mem_k - top).exp()
        total = k.sum(1) + mem_k.sum(1)
        # (B, heads, channels of V, channels of K): in this order the gradients have the memory layout of k and x.
        context = w_v.unflatten(0, by_head) @ (x.transpose(1, 2) @ k).unflatten(2, by_head).transpose(1, 2)
        context = context + self.mem_kv[1].to(x.dtype) @ mem_k.unflatten(2, by_head).transpose(1, 2)
        context = context * (self.scale / total).unflatten(1, by_head).unsqueeze(2)

        out = cast(nn.Conv2d, self.to_out[0])
        assert out.bias is not None
        mixed = context.transpose(2, 3) @ out.weight.flatten(1).to(x.dtype).t().unflatten(0, by_head)
        q = F.linear(x, w_q).unflatten(2, by_head).softmax(dim=-1).flatten(2)
        return torch.baddbmm(out.bias.to(x.dtype), q, mixed.flatten(1, 2))


def _pixels(x: Tensor) -> Tensor:
    """Return images, (B, C, H, W), as rows of pixels, (B, H W, C): a view if the memory format is channels last."""
    return x.flatten(2).transpose(1, 2)


def _image(rows: Tensor, like: Tensor) -> Tensor:
    """Return rows of pixels, (B, H W, C), as channels-last images of the height and width of `like`."""
    images: Tensor = rows.transpose(1, 2).unflatten(2, like.shape[2:])
    return images


def _plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return torch.matmul(weights, v)
