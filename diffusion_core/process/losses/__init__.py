"""What a wrong prediction costs: one function of the error a file, chosen by `kind`."""

from typing import Protocol

from torch import Tensor


class Loss(Protocol):
    """Gives the loss of each element, before means and weights."""

    @property
    def kind(self) -> str:
        """The name it is chosen by."""
        ...

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each element; all three have the same shape."""
        ...
