"""One image file to pixels of one shape, or the reason why not.

Steps: recognise, check size and integrity, decode, put transparent pixels on white, convert to 8-bit gray (ITU-R
BT.601 luma: 0.299 R + 0.587 G + 0.114 B) or RGB, crop to the central square, resize, turn upright by EXIF. Of an
animation the first frame counts. Colour profiles are not applied.

The filter is Pillow's bicubic, whose support grows with the reduction so that it is a low-pass filter below the new
Nyquist frequency; resizers with a fixed support alias and bias every metric that is measured afterwards (Parmar et
al. 2022, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation"). Lanczos is as free of aliasing but rings
more at the hard edges of drawings and glyphs.
"""

import hashlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from diffusion_core.data.formats import FORMATS


@dataclass(frozen=True)
class Decoded:
    """What became of one file: `pixels`, or the `reason` why there are none.

    Attributes:
        sha256: of the file's bytes, in hexadecimal.
        width, height, mode: of the file as its header gives them (Pillow's name of the mode); None where the header
            itself cannot be trusted.
        pixels: (image_size, image_size, channels).
    """

    sha256: str
    width: int | None
    height: int | None
    mode: str | None
    pixels: npt.NDArray[np.uint8] | None
    reason: str | None


def decode(file: Path, image_size: int, channels: int) -> Decoded:
    """Decode `file` to `image_size` x `image_size` pixels of 1 (gray) or 3 (RGB) channels.

    Raises:
        OSError: the file cannot be read. Whatever is wrong with its content is told in `Decoded.reason`.
    """
    width = height = mode = pixels = reason = None
    with file.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        try:
            with warnings.catch_warnings(action="ignore"):
                # Pillow compares the header's size with Image.MAX_IMAGE_PIXELS (89 million) before it decodes.
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                header = Image.open(stream, formats=FORMATS)
                (width, height), mode = header.size, header.mode
                # A pass over the checksums of a PNG, which decoding skips. It consumes the image.
                header.verify()
                pixels = _pixels(Image.open(stream, formats=FORMATS), image_size, channels)
        except Exception as error:  # decoders raise nearly anything on damaged bytes
            reason = _reason(error, os.fstat(stream.fileno()).st_size)
    return Decoded(sha256, width, height, mode, pixels, reason)


def _pixels(image: Image.Image, image_size: int, channels: int) -> npt.NDArray[np.uint8]:
    # A large JPEG is decoded at 1/2, 1/4 or 1/8, which is ten times as fast; at least four times the final size
    # remain, so that the filter below still decides what the result looks like.
    reduced = image.draft(None, (4 * image_size, 4 * image_size))
    image.load()
    width, height = reduced[1][2:] if reduced else image.size  # a reduced JPEG is padded to whole pixels
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    square = (
        _opaque(image)
        .convert("L" if channels == 1 else "RGB")
        .resize((image_size, image_size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    )
    square.info = image.info  # which has the orientation
    ImageOps.exif_transpose(square, in_place=True)
    return np.asarray(square).reshape(image_size, image_size, channels)


def _opaque(image: Image.Image) -> Image.Image:
    """Return an image of 8 bits a channel without transparency."""
    if image.mode.startswith("I;16"):
        # 65535 = 255 * 257. Pillow's own conversion clips at 255.
        return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("pixels of 32 bits have no agreed range; save the image with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGB", image.size, "white")
        paper.paste(image, mask=image)
        return paper
    return image


def _reason(error: Exception, size: int) -> str:
    if size == 0:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):  # its own message holds the address of the stream
        return f"not one of {', '.join(FORMATS)}, or its header is damaged"
    return f"{type(error).__name__}: {error}"
