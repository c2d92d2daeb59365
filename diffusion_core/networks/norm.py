"""Root-mean-square normalisation over channels (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467)."""

from typing import Any

import torch
from torch import Tensor, nn

from diffusion_core.networks import eager_cpu


class RMSNorm(nn.Module):
    """x / |x| * g * sqrt(C) over the channels of (B, C, H, W), optionally times (scale + 1) plus shift, (B, C) each.

    Computes in at least float32 and returns the dtype of x. In a state_dict, g is (1, C, 1, 1) as in
    denoising-diffusion-pytorch; the parameter is (C,), so that its gradient needs no reshaping.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(dim))
        self.register_state_dict_post_hook(_saved)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_loaded)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Return the normalised x, (B, C, H, W)."""
        if eager_cpu.pays(x):
            return eager_cpu.rms_norm(x, self.g, scale, shift)
        precise = x.to(torch.promote_types(x.dtype, torch.float32))
        length = precise.square().sum(dim=1, keepdim=True).clamp(min=1e-24).sqrt()
        gain = self.g * x.shape[1] ** 0.5
        if scale is not None:
            gain = gain * (scale.to(gain.dtype) + 1.0)  # bfloat16 rounds 1.003 to 1
        y: Tensor = precise / length * gain.unsqueeze(-1).unsqueeze(-1)
        if shift is not None:
            y = y + shift.unsqueeze(-1).unsqueeze(-1)
        return y.to(x.dtype)


def _saved(_: nn.Module, state_dict: dict[str, Any], prefix: str, __: Any) -> None:
    state_dict[prefix + "g"] = state_dict[prefix + "g"].reshape(1, -1, 1, 1)


def _loaded(_: nn.Module, state_dict: dict[str, Any], prefix: str, *__: Any) -> None:
    if prefix + "g" in state_dict:
        state_dict[prefix + "g"] = state_dict[prefix + "g"].flatten()
