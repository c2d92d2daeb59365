"""Loss weights by signal-to-noise ratio: one a file, chosen by `kind`.

The three objectives measure the same error in different units: with e = x0 - x0-hat,

    |noise error|^2 = SNR |e|^2,     |v error|^2 = (SNR + 1) |e|^2.

A weighting is handed this ratio of the objective's squared error to x0's, so that a weighting that is meant for x0
is written once and divided by it.
"""

from typing import Protocol

from torch import Tensor


class Weighting(Protocol):
    """Gives the factor by which a sample's loss at timestep t is multiplied."""

    @property
    def kind(self) -> str:
        """The name it is chosen by."""
        ...

    def __call__(self, snr: Tensor, error_ratio: Tensor) -> Tensor:
        """Return the weight of each timestep.

        Args:
            snr: abar / (1 - abar), shape (T,).
            error_ratio: the objective's squared error in units of x0's, shape (T,).
        """
        ...
