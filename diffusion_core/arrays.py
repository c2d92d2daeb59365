"""Writes arrays to NumPy files, with errors of the disk as Python has them."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffusion_core.files import naming


def save_array(file: Path, array: npt.NDArray[Any]) -> None:
    """Write an array to a file `.npy`.

    Raises:
        OSError: the disk is full or refuses; NumPy's own error has neither a number nor the path.
    """
    # NumPy writes by itself to files of Python that only read or only write, and by the file's method to others.
    with naming(file), file.open("w+b") as stream:
        np.save(stream, array)
