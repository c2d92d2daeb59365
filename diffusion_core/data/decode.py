"""Decodes an image file to pixels of one shape, or returns the reason why it cannot be decoded.

Whatever the file stores becomes 8-bit sRGB: gray, RGB or RGBA. Gray is the ITU-R BT.601 luma, 0.299 R + 0.587 G + 0.114
B. For gray and RGB, transparent images are composed on white. RGBA keeps transparency. Images without it become opaque,
and fully transparent pixels become black, so that images that look the same have the same pixels. Only the first frame
of an animation is used.
"""

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from diffusion_core.data import color, framing, readers
from diffusion_core.data.decoding import Decoding
from diffusion_core.data.duplicates import perceptual_hash
from diffusion_core.data.formats import readable
from diffusion_core.errors import is_out_of_memory

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# A large JPEG is decoded at 1/2, 1/4 or 1/8 of its size, which is ten times as fast. At least this multiple of
# the final size remains in either orientation, so that the filter determines the result.
OVERSAMPLING = 4


@dataclass(frozen=True)
class Decoded:
    """The result of decoding one file: `pixels`, or the `reason` why there are none.

    Attributes:
        width: width in the file's header; None if the header is damaged.
        height: height in the file's header; None if the header is damaged.
        mode: Pillow's name of the mode in the file's header; None if the header is damaged.
        pixels: uint8 (height, width, channels) of the requested size, or None.
        sha256: sha256 of the pixels, in hexadecimal, or None.
        perceptual_hash: of the pixels, or None.
        reason: why there are no pixels, or None.
        used: largest sample as a share of white, where the file has more than 8 bits a sample.
    """

    width: int | None = None
    height: int | None = None
    mode: str | None = None
    pixels: npt.NDArray[np.uint8] | None = None
    sha256: str | None = None
    perceptual_hash: int | None = None
    reason: str | None = None
    used: float | None = None


def decode(content: bytes, wanted: Decoding) -> Decoded:
    """Decode a file's bytes.

    Raises:
        MemoryError: memory is too small to decode it, which says nothing of the file.
    """
    width = height = mode = None
    try:
        with (
            _own_limit(),
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(content), formats=readable()) as header,
        ):
            (width, height), mode = header.size, header.mode
            if width * height > wanted.max_pixels:
                raise readers.Refused(f"it has {width * height} pixels, and prepare.max_pixels is {wanted.max_pixels}")
            request = readers.Request(
                OVERSAMPLING * max(wanted.size), wanted.sample_range, wanted.color_profile == "convert"
            )
            read = readers.read(header, content, request)
            pixels = _pixels(read, wanted)
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()
        return Decoded(width, height, mode, pixels, digest, perceptual_hash(pixels), used=read.used)
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        if _lacks_memory(error, wanted.max_pixels):
            raise MemoryError(str(error)) from None
        return Decoded(width, height, mode, reason=_reason(error, len(content)))


@contextmanager
def _own_limit() -> Iterator[None]:
    """Let Pillow open images of any size during the block, because `decode` compares the size itself."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _pixels(read: readers.Pixels, wanted: Decoding) -> npt.NDArray[np.uint8]:
    image = color.srgb(read.image, read.profile if wanted.color_profile == "convert" else None)
    if wanted.channels != 4 and image.mode in ("LA", "RGBA"):
        image = image.convert("RGBA")
        paper = Image.new("RGB", image.size, "white")
        paper.paste(image, mask=image)
        image = paper
    image = image.convert(MODES[wanted.channels])
    framed = framing.framed(image, (read.width, read.height), read.orientation, wanted.size)
    pixels = np.array(framed).reshape(*wanted.size, wanted.channels)
    if wanted.channels == 4:
        pixels[pixels[..., 3] == 0] = 0
    return pixels


def _lacks_memory(error: Exception, most_pixels: int) -> bool:
    """Return whether decoding failed for want of memory."""
    text = str(error)
    if "could not create decoder object" in text:
        # Pillow's only word on a WebP that is damaged or does not fit: see whether the largest one would.
        try:
            np.empty(most_pixels * 4, np.uint8)
        except MemoryError:
            return True
    return is_out_of_memory(error) or any(words in text.lower() for words in ("out of memory", "insufficient memory"))


def _reason(error: Exception, size: int) -> str:
    if size == 0:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):  # its message has the memory address of the stream
        return f"not one of {', '.join(readable())}, or its header is damaged"
    return str(error) if isinstance(error, readers.Refused) else f"damaged: {str(error) or type(error).__name__}"
