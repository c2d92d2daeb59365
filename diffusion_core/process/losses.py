"""Losses of each element, before means and weights."""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch.nn.functional as F
from torch import Tensor

from diffusion_core.choices import Choice


class Loss(Protocol):
    """A loss of each element."""

    @property
    def kind(self) -> str:
        """Its name in params.yaml."""
        ...

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each element; all three have the same shape."""
        ...


@dataclass(frozen=True)
class L2(Choice):
    """(output - target)^2, whose minimum is the mean (Ho et al. 2020, https://arxiv.org/abs/2006.11239, equation 14).

    The loss of the variational bound.
    """

    kind: Literal["l2"] = "l2"

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the squared error of each element."""
        return F.mse_loss(output, target, reduction="none")


@dataclass(frozen=True)
class L1(Choice):
    """|output - target|, whose minimum is the median (Chen et al. 2020, https://arxiv.org/abs/2009.00713, equation 11).

    Samples are less diverse and have fewer outliers (Saharia et al. 2021).
    """

    kind: Literal["l1"] = "l1"

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the absolute error of each element."""
        return F.l1_loss(output, target, reduction="none")


@dataclass(frozen=True)
class Huber(Choice):
    """e^2 / 2 up to |e| = delta, delta (|e| - delta / 2) above (Huber 1964, https://doi.org/10.1214/aoms/1177703732).

    Attributes:
        delta: the error at which quadratic becomes linear; greater than 0.
    """

    kind: Literal["huber"] = "huber"
    delta: float = 1.0

    def __post_init__(self) -> None:
        if self.delta <= 0.0:
            raise ValueError(f"delta is {self.delta}; the Huber loss needs a value greater than 0")

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the Huber loss of each element."""
        return F.huber_loss(output, target, reduction="none", delta=self.delta)


LossChoice = L2 | L1 | Huber
