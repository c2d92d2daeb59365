"""The image files below a folder, by their names; whether they decode is for `prepare` to find out.

Pillow knows some forty formats more than these, among them EPS, for which it starts Ghostscript. The list is short so
that no decoder meets a file that nobody meant for it.
"""

import os
from pathlib import Path
from typing import NoReturn

from PIL import Image

from diffusion_core.errors import UserError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")


def image_suffixes() -> frozenset[str]:
    """Return the suffixes of these formats, in lower case and with the dot."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS)


def image_files(root: Path, name: str) -> tuple[list[Path], int, int]:
    """Return the images below `root` in order, and how many other files and stray links there are.

    Hidden files and folders are left out. `name` is what the user knows the folder by: a key or an argument.

    Raises:
        UserError: a folder cannot be read, or the name of an image is not UTF-8.
    """
    suffixes = image_suffixes()
    images: list[Path] = []
    others = links = 0
    for parent, folders, names in os.walk(root, onerror=lambda error: refuse(error, name)):
        folders[:] = [folder for folder in folders if not folder.startswith(".")]
        # A link to a folder is never entered, so that a ring of links ends.
        links += sum(Path(parent, folder).is_symlink() for folder in folders)
        for each in names:
            file = Path(parent, each)
            if each.startswith("."):
                continue
            if file.is_symlink() and not Path(os.path.realpath(file)).is_relative_to(root):
                links += 1
            elif file.suffix.lower() not in suffixes or not file.is_file():
                others += 1
            else:
                images.append(file)
    for image in images:
        try:
            str(image.relative_to(root)).encode()
        except UnicodeEncodeError:
            raise UserError(f"{name} holds {os.fsencode(image)!r}, which is no UTF-8: rename the file") from None
    return sorted(images), others, links


def refuse(error: OSError, name: str) -> NoReturn:
    """Tell of a file or folder that cannot be read."""
    raise UserError(
        f"{name}: {error.filename} cannot be read ({error.strerror}): make it readable or move it away"
    ) from None
