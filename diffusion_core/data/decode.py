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
from math import ceil
from typing import Self

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
# the final size remains in either orientation, so that the filter determines the result. Of three times Pillow says:
# "indistinguishable from fair resampling in most cases" (`reducing_gap` of `Image.resize`).
OVERSAMPLING = 3


@dataclass(frozen=True)
class Part:
    """An image made of a file.

    Attributes:
        pixels: uint8 (height, width, channels) of the requested size.
        sha256: sha256 of the pixels, in hexadecimal.
        perceptual_hash: of the pixels.
    """

    pixels: npt.NDArray[np.uint8]
    sha256: str
    perceptual_hash: int

    @classmethod
    def of(cls, pixels: npt.NDArray[np.uint8]) -> Self:
        """Return the image with these pixels."""
        return cls(pixels, hashlib.sha256(pixels.tobytes()).hexdigest(), perceptual_hash(pixels))


@dataclass(frozen=True)
class Decoded:
    """The result of decoding one file: its `parts`, or the `reason` why there are none.

    Attributes:
        width: width in the file's header; None if the header is damaged.
        height: height in the file's header; None if the header is damaged.
        mode: Pillow's name of the mode in the file's header; None if the header is damaged.
        parts: the images, at least one, or none.
        reason: why there are no pixels, or None.
        used: largest sample as a share of white, where the file has more than 8 bits a sample.
    """

    width: int | None = None
    height: int | None = None
    mode: str | None = None
    parts: tuple[Part, ...] = ()
    reason: str | None = None
    used: float | None = None

    @property
    def pixels(self) -> npt.NDArray[np.uint8] | None:
        """The pixels of the first part, or None."""
        return self.parts[0].pixels if self.parts else None


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
            _check_shape(width, height, wanted)
            read = readers.read(header, content, _request(wanted))
            parts = _parts(read, wanted, hashlib.sha256(content).digest())
        return Decoded(width, height, mode, parts, used=read.used)
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


def _check_shape(width: int, height: int, wanted: Decoding) -> None:
    if width * height > wanted.max_pixels:
        raise readers.Refused(f"it has {width * height} pixels, and prepare.max_pixels is {wanted.max_pixels}")
    if min(width, height) < wanted.min_size:
        raise readers.Refused(f"it has {width} x {height} pixels, and prepare.min_size is {wanted.min_size}")
    if wanted.max_aspect is not None and max(width, height) > wanted.max_aspect * min(width, height):
        raise readers.Refused(f"it has {width} x {height} pixels, and prepare.max_aspect is {wanted.max_aspect:g}")


def _request(wanted: Decoding) -> readers.Request:
    # A reduced JPEG was averaged in the values of sRGB.
    shortest = 2**31 if wanted.linear_light else ceil(OVERSAMPLING * max(wanted.size) / wanted.crop.smallest)
    return readers.Request(shortest, wanted.sample_range, wanted.color_profile == "convert")


def _parts(read: readers.Pixels, wanted: Decoding, digest: bytes) -> tuple[Part, ...]:
    image = color.srgb(read.image, read.profile if wanted.color_profile == "convert" else None)
    if wanted.channels != 4 and image.mode in ("LA", "RGBA"):
        image = image.convert("RGBA")
        paper = Image.new("RGB", image.size, "white")
        paper.paste(image, mask=image)
        image = paper
    image = image.convert(MODES[wanted.channels])
    extent = (read.width, read.height)
    images = framing.framed(
        image, extent, read.orientation, wanted.size, wanted.crop, digest, linear_light=wanted.linear_light
    )
    return tuple(Part.of(_array(each, wanted)) for each in images)


def _array(image: Image.Image, wanted: Decoding) -> npt.NDArray[np.uint8]:
    pixels = np.array(image).reshape(*wanted.size, wanted.channels)
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
