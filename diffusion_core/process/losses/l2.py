"""The squared error of Ho et al. 2020 (https://arxiv.org/abs/2006.11239), equation 14."""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from diffusion_core.kinds import Kind


@dataclass(frozen=True)
class L2(Kind):
    """(output - target)^2, whose minimum is the mean: the one that the theory of diffusion asks for."""

    kind: Literal["l2"] = "l2"

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output, target, reduction="none")
