"""Reads the pixels of one file: 8 bits a sample, in the space of the file's colours.

Pillow finds the format and reads most. What it reads wrong in silence is read by others:

* JPEG by libjpeg-turbo (simplejpeg), which refuses damaged data. Pillow fills in gray.
* PNG by libpng (imagecodecs), which knows transparency of every depth, keeps 16 bits and checks every checksum.
* TIFF of more than 8 bits by tifffile, which knows planes, WhiteIsZero, 12 bits and the samples' range.
"""

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import simplejpeg
import tifffile
from imagecodecs import png_decode
from PIL import ExifTags, Image

from diffusion_core.data.bit_depth import eight_bits, top_of
from diffusion_core.data.color import SRGB, from_gamma, is_srgb
from diffusion_core.data.decoding import SampleRange

# A JPEG can be decoded at one of these parts of its size, in a fraction of the time. Other parts are slow.
REDUCTIONS = (8, 4, 2)


class Refused(Exception):
    """A file that may be whole, but does not say what its pixels mean, or is too large."""


@dataclass(frozen=True)
class Pixels:
    """The pixels of a file.

    Attributes:
        image: 8 bits a sample.
        width: width of what the image shows, in its pixels. A reduced JPEG is padded to whole pixels.
        height: likewise.
        orientation: the EXIF orientation that `image` still has, 1 to 8.
        profile: the ICC profile of its colours, or None.
        used: largest sample, as a share of white; None for 8 bits.
    """

    image: Image.Image
    width: float
    height: float
    orientation: int
    profile: bytes | None
    used: float | None = None


@dataclass(frozen=True)
class Request:
    """What decides how pixels are read.

    Attributes:
        shortest: pixels that must remain of each side of a JPEG that is reduced.
        sample_range: see `bit_depth`.
        with_gamma: whether to convert colours by a PNG's gAMA and cHRM.
    """

    shortest: int
    sample_range: SampleRange
    with_gamma: bool


def read(header: Image.Image, content: bytes, request: Request) -> Pixels:
    """Read the pixels of a file.

    Args:
        header: the file as Pillow opens it.
        content: the file's bytes.
        request: how to read them.

    Raises:
        Refused: its pixels have no clear meaning.
        Exception: the file is damaged; each library has errors of its own.
    """
    match header.format:
        # MPO is a JPEG with further pictures, as phones make them.
        case "JPEG" | "MPO":
            return _jpeg(header, content, request)
        case "PNG":
            return _png(header, content, request)
        case "TIFF":
            return _tiff(header, content, request)
        case _:
            return _other(header, request)


def _orientation(header: Image.Image) -> int:
    """Return the EXIF orientation; broken EXIF costs no good pixels, so it counts as none."""
    try:
        value = header.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # Pillow's parser raises nearly anything on damaged bytes
        return 1
    return value if value in range(1, 9) else 1


def _whole(image: Image.Image, header: Image.Image, orientation: int, used: float | None = None) -> Pixels:
    return Pixels(image, *image.size, orientation, header.info.get("icc_profile"), used)


def _other(header: Image.Image, request: Request) -> Pixels:
    header.load()
    # Read after loading, because Pillow turns some formats itself.
    orientation = _orientation(header)
    if header.mode.startswith("I;16"):
        return _deep(np.asarray(header).astype(np.uint16), 65535, header, orientation, request)
    if header.mode in ("I", "F"):
        raise Refused("pixels of 32 bits have no agreed range: save the image with 8 or 16 bits")
    return _whole(header, header, orientation)


def _jpeg(header: Image.Image, content: bytes, request: Request) -> Pixels:
    if header.mode == "CMYK" and "adobe" not in header.info:
        raise Refused("CMYK without Adobe's marker, which says whether inks are inverted: save the image as RGB")
    colorspace = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}[header.mode]
    part = next((part for part in REDUCTIONS if min(header.size) >= part * request.shortest), 1)
    # The least size that is not smaller is the size at this part.
    least = {"min_width": -(-header.width // part), "min_height": -(-header.height // part)}
    samples = simplejpeg.decode_jpeg(content, colorspace, **least)
    # Adobe's inks are inverted.
    image = Image.fromarray(255 - samples, "CMYK") if colorspace == "CMYK" else _image(samples)
    width, height = header.width / part, header.height / part
    return Pixels(image, width, height, _orientation(header), header.info.get("icc_profile"))


def _png(header: Image.Image, content: bytes, request: Request) -> Pixels:
    samples = png_decode(content)
    samples = samples.reshape(header.height, header.width, -1)
    gamma = float(header.info.get("gamma", 0.0))
    primaries = tuple(header.info.get("chromaticity", SRGB))
    # An ICC profile or sRGB says it better.
    has_gamma = gamma > 0.0 and not {"srgb", "icc_profile"} & header.info.keys()
    if request.with_gamma and has_gamma and not is_srgb(gamma, primaries):
        top = int(np.iinfo(samples.dtype).max)
        colors = samples[..., : samples.shape[-1] - 1 + samples.shape[-1] % 2]
        converted = np.rint(from_gamma(colors / top, gamma, primaries) * top).astype(samples.dtype)
        samples = np.concatenate([converted, samples[..., colors.shape[-1] :]], axis=-1)
    orientation = _orientation(header)
    if samples.dtype == np.uint16:
        return _deep(samples, 65535, header, orientation, request)
    return _whole(_image(samples), header, orientation)


def _tiff(header: Image.Image, content: bytes, request: Request) -> Pixels:
    bits = header.tag_v2.get(258, 1)  # type: ignore[attr-defined]
    if max(bits if isinstance(bits, tuple) else (bits,)) <= 8:
        return _other(header, request)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages[0]
        if not isinstance(page, tifffile.TiffPage) or page.sampleformat != 1 or page.bitspersample > 16:
            raise Refused("pixels of 32 bits, or signed ones, have no agreed range: save it with 8 or 16 bits")
        samples = page.asarray().astype(np.uint16)
        stored = 2**page.bitspersample - 1
        for code in (341, 281):  # SMaxSampleValue, MaxSampleValue
            if code in page.tags:
                stored = min(stored, max(np.ravel(page.tags[code].value).tolist()) or stored)
        if page.planarconfig == 2:
            samples = np.moveaxis(samples, 0, -1)
        samples = samples.reshape(header.height, header.width, -1)
        return _deep_tiff(samples, int(stored), page, header, request)


def _deep_tiff(
    samples: npt.NDArray[np.uint16], stored: int, page: tifffile.TiffPage, header: Image.Image, request: Request
) -> Pixels:
    channels = {0: 1, 1: 1, 2: 3, 5: 4}.get(int(page.photometric))
    if channels is None:
        raise Refused("its colours of more than 8 bits are neither gray, RGB nor CMYK: save the image as RGB")
    alpha = next((channels + i for i, kind in enumerate(page.extrasamples) if kind in (1, 2)), None)
    top = top_of(samples[..., :channels], stored, request.sample_range)
    colors = eight_bits(samples[..., :channels], top)
    if page.photometric == 0:
        colors = 255 - colors
    image = Image.fromarray(colors, "CMYK") if channels == 4 else _image(colors)
    if alpha is not None:
        opacity = eight_bits(samples[..., alpha], 65535 if page.bitspersample == 16 else 2**page.bitspersample - 1)
        if page.extrasamples[alpha - channels] == 1 and channels == 3:
            # The colours are multiplied by it.
            image = Image.fromarray(np.dstack([colors, opacity]), "RGBa").convert("RGBA")
        else:
            image = image.convert("RGB") if channels == 4 else image
            image.putalpha(Image.fromarray(opacity))
    orientation = int(page.tags[274].value) if 274 in page.tags else 1
    used = float(samples[..., :channels].max(initial=0)) / top
    return _whole(image, header, orientation if orientation in range(1, 9) else 1, used)


def _deep(
    samples: npt.NDArray[np.uint16], stored: int, header: Image.Image, orientation: int, request: Request
) -> Pixels:
    """Return gray or RGB of 16 bits, with or without alpha, as 8 bits."""
    samples = samples.reshape(*samples.shape[:2], -1)
    colors = samples.shape[-1] - 1 + samples.shape[-1] % 2
    top = top_of(samples[..., :colors], stored, request.sample_range)
    parts = [eight_bits(samples[..., :colors], top), eight_bits(samples[..., colors:], 65535)]
    used = float(samples[..., :colors].max(initial=0)) / top
    return _whole(_image(np.concatenate(parts, axis=-1)), header, orientation, used)


def _image(samples: npt.NDArray[np.uint8]) -> Image.Image:
    """Return an image of 1 (gray), 2 (and alpha), 3 (RGB) or 4 (and alpha) channels."""
    return Image.fromarray(np.ascontiguousarray(samples.squeeze(-1) if samples.shape[-1] == 1 else samples))
