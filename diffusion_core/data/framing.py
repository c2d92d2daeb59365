"""The parts of a picture that are kept, in the size and position of the dataset.

The filter is Pillow's bicubic. Its support grows with the reduction, so it is a low-pass filter below the new Nyquist
frequency. Resizers with a fixed support cause aliasing, which biases all later metrics (Parmar et al. 2022, "On Aliased
Resizing and Surprising Subtleties in GAN Evaluation"). Lanczos avoids aliasing too, but rings more at hard edges.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
from PIL import Image

from diffusion_core.data.crops import Box, Crop

# Returns the part of an image in a box, with this width and height.
Resize = Callable[[tuple[int, int], Box], Image.Image]

# What turns a picture of each EXIF orientation upright (EXIF 2.3, tag 274).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The orientations that swap rows and columns.
_LYING = (5, 6, 7, 8)


# The intensity of each of the 256 values of sRGB, from 0 to 1 (IEC 61966-2-1).
_VALUES = np.arange(256) / 255.0
_LINEAR = np.where(_VALUES <= 0.04045, _VALUES / 12.92, ((_VALUES + 0.055) / 1.055) ** 2.4).astype(np.float32)


def framed(
    image: Image.Image,
    extent: tuple[float, float],
    orientation: int,
    size: tuple[int, int],
    crop: Crop,
    digest: bytes,
    *,
    linear_light: bool,
) -> list[Image.Image]:
    """Return the parts of an image, upright and resized.

    Args:
        image: the image as it is stored: L, RGB or RGBA.
        extent: width and height of what it shows, in its pixels; at most its own.
        orientation: its EXIF orientation.
        size: height and width of the results.
        crop: chooses the parts.
        digest: sha256 of the file.
        linear_light: whether intensities are averaged, as light is, and not the values of sRGB.
    """
    # The orientation is applied to the result, which has fewer pixels; until then sides are as stored in the file.
    height, width = reversed(size) if orientation in _LYING else size
    turn = _UPRIGHT.get(orientation)
    resize = _resizer_of_light(image) if linear_light else partial(_resized, image)
    parts = [
        _part(image.mode, extent, box, (width, height), resize) for box in crop.boxes(extent, (width, height), digest)
    ]
    return parts if turn is None else [part.transpose(turn) for part in parts]


def _part(mode: str, extent: tuple[float, float], box: Box, shape: tuple[int, int], resize: Resize) -> Image.Image:
    """Return one part of an image, resized to `shape`, width and height; what lies beyond the image is the border."""
    inside = max(box[0], 0.0), max(box[1], 0.0), min(box[2], extent[0]), min(box[3], extent[1])
    if inside == box:
        return resize(shape, box)
    across, down = shape[0] / (box[2] - box[0]), shape[1] / (box[3] - box[1])
    left, right = round((inside[0] - box[0]) * across), round((inside[2] - box[0]) * across)
    top, bottom = round((inside[1] - box[1]) * down), round((inside[3] - box[1]) * down)
    within = resize((max(right - left, 1), max(bottom - top, 1)), inside)
    # White, and transparent where there is transparency.
    paper = Image.new(mode, shape, (0, 0, 0, 0) if mode == "RGBA" else "white")
    paper.paste(within, (min(left, shape[0] - 1), min(top, shape[1] - 1)))
    return paper


def _resized(image: Image.Image, shape: tuple[int, int], box: Box) -> Image.Image:
    return image.resize(shape, Image.Resampling.BICUBIC, box=box)


def _resizer_of_light(image: Image.Image) -> Resize:
    """Return what resizes intensities. Those of RGBA count by their opacity, as in Pillow's own resizing."""
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    has_alpha = image.mode == "RGBA"
    light = _LINEAR[pixels[..., :3]]
    alpha = pixels[..., 3:].astype(np.float32) / 255.0
    channels = np.concatenate([light * alpha, alpha], axis=-1) if has_alpha else light
    # Once for all parts of the image.
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(channels, -1, 0)]

    def resize(shape: tuple[int, int], box: Box) -> Image.Image:
        resized = np.stack([np.asarray(_resized(plane, shape, box)) for plane in planes], axis=-1)
        if has_alpha:
            opacity = np.clip(resized[..., 3:], 0.0, 1.0)
            light = np.divide(resized[..., :3], opacity, out=np.zeros_like(resized[..., :3]), where=opacity > 0.0)
            values = np.concatenate([_srgb(light), opacity], axis=-1)
        else:
            values = _srgb(resized)
        done = np.rint(values * 255.0).astype(np.uint8)
        return Image.fromarray(done[..., 0] if image.mode == "L" else done, image.mode)

    return resize


def _srgb(light: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return values of sRGB, 0 to 1, of intensities; bicubic filtering may have left these above 1 or below 0."""
    light = np.clip(light, 0.0, 1.0)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
