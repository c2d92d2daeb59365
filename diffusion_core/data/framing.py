"""The part of a picture that is kept, in the size and position of the dataset.

The largest centred part with the result's aspect ratio is kept and resized. Nothing is stretched or padded.

The filter is Pillow's bicubic. Its support grows with the reduction, so it is a low-pass filter below the new Nyquist
frequency. Resizers with a fixed support cause aliasing, which biases all later metrics (Parmar et al. 2022, "On Aliased
Resizing and Surprising Subtleties in GAN Evaluation"). Lanczos avoids aliasing too, but rings more at hard edges.
"""

from PIL import Image

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


def framed(image: Image.Image, extent: tuple[float, float], orientation: int, size: tuple[int, int]) -> Image.Image:
    """Return the middle of an image, upright and resized.

    Args:
        image: the image as it is stored.
        extent: width and height of what it shows, in its pixels; at most its own.
        orientation: its EXIF orientation.
        size: height and width of the result.
    """
    # The orientation is applied to the result, which has fewer pixels; until then sides are as stored in the file.
    height, width = reversed(size) if orientation in _LYING else size
    resized = image.resize((width, height), Image.Resampling.BICUBIC, box=_middle(*extent, width, height))
    turn = _UPRIGHT.get(orientation)
    return resized if turn is None else resized.transpose(turn)


def _middle(width: float, height: float, across: int, down: int) -> tuple[float, float, float, float]:
    """Return the largest centred box in `width` x `height` with the aspect ratio `across` : `down`.

    If the aspect ratios are equal, sides remain whole numbers, because the products and quotients are exact.

    Returns:
        left, top, right, bottom.
    """
    kept_width = min(width, height * across / down)
    kept_height = min(height, width * down / across)
    left, top = (width - kept_width) / 2, (height - kept_height) / 2
    return left, top, left + kept_width, top + kept_height
