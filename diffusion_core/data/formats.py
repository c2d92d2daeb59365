"""The formats of image files that are read.

Pillow has about forty more, for example EPS, for which it starts Ghostscript. The list is short, so that unexpected
files reach no other decoder.
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec

from PIL import Image

FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "JXL", "PNG", "TIFF", "WEBP")
# The packages that bring a format to Pillow, which this project reads where they are installed.
PLUGINS = {"HEIF": "pillow_heif", "JXL": "pillow_jxl"}


@cache
def readable() -> tuple[str, ...]:
    """Return those of `FORMATS` that this installation reads, by Pillow's names."""
    for package in PLUGINS.values():
        if find_spec(package) is not None:
            plugin = import_module(package)
            # pillow_jxl registers itself when it is imported.
            if hasattr(plugin, "register_heif_opener"):
                plugin.register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes of readable formats, in lower case and with the dot."""
    formats = readable()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)
