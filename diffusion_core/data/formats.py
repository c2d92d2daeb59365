"""The formats of image files that are read.

Pillow has about forty more, for example EPS, for which it starts Ghostscript. The list is short, so that unexpected
files reach no other decoder.
"""

from functools import cache
from importlib.util import find_spec

from PIL import Image

FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "JXL", "PNG", "TIFF", "WEBP")


@cache
def readable() -> tuple[str, ...]:
    """Return those of `FORMATS` that this installation reads, by Pillow's names.

    HEIF and JXL come with the packages pillow-heif and pillow-jxl-plugin, where these are installed.
    """
    if find_spec("pillow_heif") is not None:
        from pillow_heif import register_heif_opener

        register_heif_opener()
    if find_spec("pillow_jxl") is not None:
        # It registers itself.
        import pillow_jxl  # noqa: F401
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes of readable formats, in lower case and with the dot."""
    formats = readable()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)
