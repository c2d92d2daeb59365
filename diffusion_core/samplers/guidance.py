"""Classifier-free guidance, Ho & Salimans 2022 (https://arxiv.org/abs/2207.12598), with two later corrections.

    x0 = x0(nobody) + scale (x0(label) - x0(nobody))

It blends in x0: every conversion between the objectives is affine, so this equals the blend of the outputs.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_core.kinds import Options


@dataclass(frozen=True)
class Guidance(Options):
    """How strongly samples are pushed towards their label.

    Attributes:
        scale: 1 for none; above 1, samples are more typical of their class and less varied; 0 leaves the label out.
        rescale: phi in [0, 1] of Lin et al. 2023 (https://arxiv.org/abs/2305.08891), equation 16, here of x0 and not of
            the network's output: how far each image's standard deviation is brought back to the one it has without
            guidance, against over-exposure.
        interval: the noise levels (least, greatest], as sigma = sqrt(1/abar - 1), at which guidance acts; all if None.
            At the others it harms, and costs a second pass (Kynkaanniemi et al. 2024,
            https://arxiv.org/abs/2404.07724).
    """

    scale: float = 1.0
    rescale: float = 0.0
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.scale < math.inf:
            raise ValueError(f"guidance.scale is {self.scale}; it must be at least 0, and 1 is no guidance")
        if not 0.0 <= self.rescale <= 1.0:
            raise ValueError(f"guidance.rescale is {self.rescale}; it must lie in [0, 1]")
        if self.interval is not None and not (len(self.interval) == 2 and 0.0 <= self.interval[0] < self.interval[1]):
            raise ValueError(
                f"guidance.interval is {tuple(self.interval)}; it must be two rising noise levels, the first at least 0"
            )

    @property
    def passes(self) -> tuple[int, ...]:
        """How many predictions of an image a pass of the network makes: 1, 2 where guidance blends, or both in turn."""
        if self.scale in (0.0, 1.0):
            return (1,)
        return (2,) if self.interval is None else (1, 2)

    def acts_at(self, alpha_bar: float) -> bool:
        """Whether the prediction without a label is needed at this noise level."""
        if self.scale == 1.0 or self.interval is None:
            return self.scale != 1.0
        sigma = math.sqrt(1.0 / alpha_bar - 1.0) if alpha_bar > 0.0 else math.inf
        return self.interval[0] < sigma <= self.interval[1]

    def blend(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """Return the guided x0-hat, (B, C, H, W)."""
        guided = unconditional + self.scale * (conditional - unconditional)
        if self.rescale == 0.0:
            return guided
        dims = tuple(range(1, guided.ndim))
        wanted, found = (each.std(dims, correction=0, keepdim=True) for each in (conditional, guided))
        # An image of one grey level has no contrast to bring back.
        ratio = torch.where(found > 0.0, wanted / found, 1.0)
        return guided * (self.rescale * ratio + 1.0 - self.rescale)
