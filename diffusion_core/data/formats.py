"""The image formats that the pipeline reads.

Pillow knows some forty more, among them EPS, for which it starts Ghostscript. The list is short so that no decoder
meets a file that nobody meant for it.
"""

from PIL import Image

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")


def image_suffixes() -> frozenset[str]:
    """Return the suffixes of these formats, in lower case and with the dot."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS)
