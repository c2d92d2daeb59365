"""The class of an image, from the name of its folder, and its split, from its content."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from diffusion_core.data.manifest import Split


def class_names(sources: Iterable[str]) -> list[str]:
    """Return the names of the images' top-level folders in natural order (`9` before `10`).

    The list is empty, so that images have no labels, if an image is in no folder or all images are in one folder.
    """
    tops = {PurePosixPath(source).parts[:-1][:1] for source in sources}
    if () in tops or len(tops) < 2:
        return []
    return sorted((top[0] for top in tops), key=_natural)


def strays(sources: Iterable[str]) -> list[str]:
    """Return the images in no folder, if the folders of the other images would otherwise be classes."""
    paths = [PurePosixPath(source) for source in sources]
    folders = {path.parts[0] for path in paths if len(path.parts) > 1}
    return [str(path) for path in paths if len(path.parts) == 1] if len(folders) > 1 else []


def class_name(source: str) -> str:
    """Return the top-level folder of a path."""
    return PurePosixPath(source).parts[0]


def _natural(name: str) -> tuple[list[str | int], str]:
    # split() alternates text and number, so that equal types are compared; the name at the end orders 1 and 01.
    return [int(part) if part.isdigit() else part.casefold() for part in re.split(r"(\d+)", name)], name


def split_of(sha256: str, validation_fraction: float) -> Split:
    """Return the split of the file with this sha256 (hexadecimal).

    The first 64 bits of the digest, as a fraction of 2^64, are uniform on [0, 1). So the split of a file does not
    depend on other files, its copies have the same split, and a greater `validation_fraction` only adds to validation.
    """
    return "validation" if int(sha256[:16], 16) / 2**64 < validation_fraction else "train"
