"""Samples of more than 8 bits, as 8 bits.

A sample of b bits has the range 0 to 2^b - 1. Files may say a smaller one, and often do not: a camera's 12 bits are
mostly stored as 16, whose upper four are zero. `type` trusts the file. `data` takes the fewest bits that hold the
picture's largest sample.
"""

import numpy as np
import numpy.typing as npt

from diffusion_core.data.decoding import SampleRange

Deep = npt.NDArray[np.uint16]


def top_of(samples: Deep, stored: int, sample_range: SampleRange) -> int:
    """Return the sample that is white.

    Args:
        samples: the samples of one picture.
        stored: the largest sample that the file promises, at most 65535.
        sample_range: whether to trust `stored`; a picture whose samples exceed it is read as 16 bits.
    """
    largest = int(samples.max(initial=0))
    if sample_range == "data":
        return max(255, (1 << largest.bit_length()) - 1)
    return stored if largest <= stored else 65535


def eight_bits(samples: Deep, top: int) -> npt.NDArray[np.uint8]:
    """Return round(255 samples / top)."""
    return ((samples.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)
