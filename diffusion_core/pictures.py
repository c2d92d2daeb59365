"""Grids of images, and PNG files."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffusion_core.files import replaced_file

# Smaller images are enlarged to about this many pixels per side.
TILE = 64
GAP = 2
WHITE = 255


def grid(images: NDArray[np.uint8], columns: int) -> Image.Image:
    """Return a grid of uint8 images, (n, H, W, C) with C 1, 3 or 4, row by row; n and columns are at least 1.

    Small images are enlarged by a whole factor without interpolation, so that pixel values, also alpha, do not change.
    The gaps are white and opaque.
    """
    factor = max(1, TILE // max(images.shape[1:3]))
    tiles = images.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width, channels = tiles.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, channels), WHITE, np.uint8)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        top, left = row * (height + GAP) + GAP, column * (width + GAP) + GAP
        sheet[top : top + height, left : left + width] = tile
    return Image.fromarray(sheet[..., 0] if channels == 1 else sheet)


def tiles(sheet: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    """Return the tiles of a `grid` of images of this size as RGB, uint8 (rows, columns, H, W, 3), enlarged as there."""
    factor = max(1, TILE // max(height, width))
    down, across = height * factor + GAP, width * factor + GAP
    # What is transparent shows white paper.
    paper = Image.new("RGBA", sheet.size, "white")
    paper.alpha_composite(sheet.convert("RGBA"))
    pixels = np.asarray(paper.convert("RGB"))[GAP:, GAP:]
    rows, columns = pixels.shape[0] // down, pixels.shape[1] // across
    cells = pixels[: rows * down, : columns * across].reshape(rows, down, columns, across, 3)
    return cells.swapaxes(1, 2)[:, :, :-GAP, :-GAP]


def save(image: Image.Image, file: Path) -> None:
    """Write a PNG atomically; after an error `file` is unchanged and no other file remains."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(file) as temporary:
        image.save(temporary, format="PNG")


def png(picture: Image.Image, about: Mapping[str, Any] | None = None) -> bytes:
    """Return a PNG file, with what is known of the picture as JSON in its metadata."""
    text = PngInfo()
    if about is not None:
        text.add_text("diffusion", json.dumps(about))
    file = io.BytesIO()
    picture.save(file, format="PNG", pnginfo=text)
    return file.getvalue()


def picture(image: NDArray[np.uint8]) -> Image.Image:
    """Return one image, uint8 (H, W, C) with C 1, 3 or 4, as a picture."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
