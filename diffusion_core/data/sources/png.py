"""Writes pixels that a source has without a file as a PNG."""

import io
from importlib.metadata import version

import numpy as np
import numpy.typing as npt
from PIL import Image

# Another version of it may write other bytes for the same pixels.
WRITTEN_BY = f"Pillow {version('pillow')}"


def as_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return pixels of H x W, or H x W x 3 or 4, as a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
