"""The U-Net of Ho et al. 2020 as in denoising-diffusion-pytorch, with optional class conditioning."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffusion_core.networks.attention import Attention, LinearAttention
from diffusion_core.networks.layers import Downsample, ResnetBlock, SinusoidalPosEmb, Upsample

Value = TypeVar("Value", bool, int)


class Unet(nn.Module):
    """Predicts noise, x0 or v from x_t and t.

    Args:
        dim: channels of the first level; even and at least 4.
        init_dim: channels after the first convolution; `dim` if None.
        out_dim: channels of the output; if None, `channels`, or twice as many with `learned_variance`.
        dim_mults: channels of each level in multiples of `dim`; each level but the last halves height and width.
        channels: channels of the images.
        self_condition: the input is cat(previous x0-hat or zeros, x_t) (Chen et al. 2022).
        learned_variance: the second half of the output's channels is for `LearnedGaussianDiffusion`.
        sinusoidal_pos_emb_theta: the longest period of the time embedding, in timesteps over 2 pi.
        dropout: dropout probability in the first block of each residual block, in [0, 1).
        attn_dim_head: channels per head; one value, or one per level.
        attn_heads: heads; one value, or one per level.
        full_attn: whether a level has softmax attention; one value, or one per level. If None, only the last level.
        flash_attn: use PyTorch's fused kernels for softmax attention. False uses the plain formula, which is slower and
            can be differentiated twice.
        linear_attn: whether the other levels have linear attention.
        num_classes: number of classes; None for an unconditional network. The label `num_classes` is the null class.
        cond_drop_prob: share of labels that training replaces by the null class, for guidance (Ho & Salimans 2022); in
            [0, 1).

    Attributes:
        downsample_factor: height and width of the images must be multiples of it.
        recompute: in training, keep only the inputs of residual blocks and attention, and recompute their activations
            in the backward pass. This needs a third more computation and a fraction of the memory.

    Raises:
        ValueError: an argument is outside its range; the message names it.
    """

    def __init__(
        self,
        dim: int,
        init_dim: int | None = None,
        out_dim: int | None = None,
        dim_mults: Sequence[int] = (1, 2, 4, 8),
        channels: int = 3,
        self_condition: bool = False,
        learned_variance: bool = False,
        sinusoidal_pos_emb_theta: float = 10000.0,
        dropout: float = 0.0,
        attn_dim_head: int | Sequence[int] = 32,
        attn_heads: int | Sequence[int] = 4,
        full_attn: bool | Sequence[bool] | None = None,
        flash_attn: bool = True,
        linear_attn: bool = True,
        num_classes: int | None = None,
        cond_drop_prob: float = 0.1,
    ) -> None:
        super().__init__()
        if dim < 4 or dim % 2:
            raise ValueError(f"dim is {dim}; it must be even and at least 4")
        if not dim_mults:
            raise ValueError("dim_mults is empty; it must have at least one level")
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; it must be at least 1, or None for a network without")
        if not 0.0 <= cond_drop_prob < 1.0:
            raise ValueError(f"cond_drop_prob is {cond_drop_prob}; it must lie in [0, 1)")
        levels = len(dim_mults)
        if full_attn is None:
            full_attn = [False] * (levels - 1) + [True]
        full = _each_level("full_attn", full_attn, levels)
        heads = _each_level("attn_heads", attn_heads, levels)
        dim_heads = _each_level("attn_dim_head", attn_dim_head, levels)

        self.channels = channels
        self.out_dim = out_dim or channels * (2 if learned_variance else 1)
        self.self_condition = self_condition
        self.num_classes = num_classes
        self.cond_drop_prob = cond_drop_prob
        self.downsample_factor = 2 ** (levels - 1)
        self.recompute = False

        init_dim = init_dim or dim
        self.init_conv = nn.Conv2d(channels * (2 if self_condition else 1), init_dim, 7, padding=3)
        time_dim = dim * 4
        self.time_mlp = nn.Sequential(
            SinusoidalPosEmb(dim, sinusoidal_pos_emb_theta),
            nn.Linear(dim, time_dim),
            nn.GELU(),
            nn.Linear(time_dim, time_dim),
        )
        self.class_embedding = None if num_classes is None else nn.Embedding(num_classes + 1, time_dim)

        def block(dim_in: int, dim_out: int) -> nn.Module:
            return ResnetBlock(dim_in, dim_out, time_emb_dim=time_dim, dropout=dropout)

        def attention(dim_in: int, level: int) -> nn.Module:
            if full[level]:
                return Attention(dim_in, heads[level], dim_heads[level], fused=flash_attn)
            return LinearAttention(dim_in, heads[level], dim_heads[level]) if linear_attn else nn.Identity()

        dims = [init_dim, *(dim * mult for mult in dim_mults)]
        plan = list(enumerate(pairwise(dims)))
        self.downs = nn.ModuleList()
        for level, (dim_in, dim_out) in plan:
            last = level == levels - 1
            down = nn.Conv2d(dim_in, dim_out, 3, padding=1) if last else Downsample(dim_in, dim_out)
            self.downs.append(
                nn.ModuleList([block(dim_in, dim_in), block(dim_in, dim_in), attention(dim_in, level), down])
            )
        self.mid_block1 = block(dims[-1], dims[-1])
        self.mid_attn = Attention(dims[-1], heads[-1], dim_heads[-1], fused=flash_attn)
        self.mid_block2 = block(dims[-1], dims[-1])
        self.ups = nn.ModuleList()
        for level, (dim_in, dim_out) in reversed(plan):
            last = level == 0
            up = nn.Conv2d(dim_out, dim_in, 3, padding=1) if last else Upsample(dim_out, dim_in)
            joined = dim_out + dim_in
            self.ups.append(
                nn.ModuleList([block(joined, dim_out), block(joined, dim_out), attention(dim_out, level), up])
            )
        self.final_res_block = block(init_dim * 2, init_dim)
        self.final_conv = nn.Conv2d(init_dim, self.out_dim, 1)
        # Channels last makes convolutions faster, and normalisation over channels much faster.
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(
        self, x: Tensor, time: Tensor, x_self_cond: Tensor | None = None, classes: Tensor | None = None
    ) -> Tensor:
        """Return the prediction, (B, out_dim, H, W).

        Args:
            x: x_t, (B, channels, H, W); H and W are multiples of `downsample_factor`.
            time: t, (B,).
            x_self_cond: the previous x0-hat, shaped like x; zeros if None.
            classes: labels, int64 (B,), in 0 .. num_classes; the null class if None.

        Raises:
            ValueError: H or W is not a multiple of `downsample_factor`.
        """
        if x.shape[-2] % self.downsample_factor or x.shape[-1] % self.downsample_factor:
            raise ValueError(
                f"the images are {x.shape[-2]} x {x.shape[-1]}; both sides must be multiples of"
                f" {self.downsample_factor}, because dim_mults has that many halvings"
            )
        if self.self_condition:
            x = torch.cat((torch.zeros_like(x) if x_self_cond is None else x_self_cond, x), dim=1)
        t = self.time_mlp(time)
        if self.class_embedding is not None:
            if classes is None:
                classes = torch.full_like(time, self.num_classes or 0, dtype=torch.long)
            t = t + self.class_embedding(classes)

        run = _recomputed if self.recompute and torch.is_grad_enabled() else _run
        x = first = self.init_conv(x.contiguous(memory_format=torch.channels_last))
        skips: list[Tensor] = []
        for level in self.downs:
            block1, block2, attend, down = level.children()
            x = run(block1, x, t)
            skips.append(x)
            x = run(block2, x, t)
            x = run(attend, x)
            skips.append(x)
            x = down(x)
        x = run(self.mid_block1, x, t)
        x = run(self.mid_attn, x)
        x = run(self.mid_block2, x, t)
        for level in self.ups:
            block1, block2, attend, up = level.children()
            x = run(block1, x, t, skips.pop())
            x = run(block2, x, t, skips.pop())
            x = run(attend, x)
            x = up(x)
        x = run(self.final_res_block, x, t, first)
        return self.final_conv(x).contiguous()  # type: ignore[no-any-return]

    def regions(self) -> Iterator[nn.Module]:
        """Yield the parts to compile separately, so that parts of one shape are compiled once."""
        return (part for part in self.modules() if isinstance(part, ResnetBlock | Attention | LinearAttention))


def _run(block: nn.Module, *inputs: Tensor) -> Tensor:
    return block(*inputs)  # type: ignore[no-any-return]


def _recomputed(block: nn.Module, *inputs: Tensor) -> Tensor:
    return checkpoint(block, *inputs, use_reentrant=False)  # type: ignore[no-any-return]


def _each_level(argument: str, value: Value | Sequence[Value], levels: int) -> list[Value]:
    """Return one value per level."""
    values = list(value) if isinstance(value, Sequence) else [value] * levels
    if len(values) != levels:
        raise ValueError(f"{argument} has {len(values)} values; it must have one for each of {levels} levels")
    return values
