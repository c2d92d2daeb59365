"""The absolute error of WaveGrad (Chen et al. 2020, https://arxiv.org/abs/2009.00713), equation 11."""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from diffusion_core.kinds import Kind


@dataclass(frozen=True)
class L1(Kind):
    """|output - target|, whose minimum is the median: less varied samples, and fewer outliers (Saharia et al. 2021)."""

    kind: Literal["l1"] = "l1"

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(output, target, reduction="none")
