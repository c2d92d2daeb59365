"""What is said of an image besides its pixels: its class, by the name of its folder, and its split, by its content."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from diffusion_core.data.manifest import Split


def class_names(sources: Iterable[str]) -> list[str]:
    """Return the names of the folders that images lie in, at the first level, in natural order (`9` before `10`).

    The list is empty, and the images have no labels, where an image lies outside of any folder or all lie in one.
    """
    tops = {PurePosixPath(source).parts[:-1][:1] for source in sources}
    if () in tops or len(tops) < 2:
        return []
    return sorted((top[0] for top in tops), key=_natural)


def strays(sources: Iterable[str]) -> list[str]:
    """Return the images outside of any folder that keep the folders of the other images from being classes."""
    paths = [PurePosixPath(source) for source in sources]
    folders = {path.parts[0] for path in paths if len(path.parts) > 1}
    return [str(path) for path in paths if len(path.parts) == 1] if len(folders) > 1 else []


def class_name(source: str) -> str:
    """Return the first folder of a path that has one."""
    return PurePosixPath(source).parts[0]


def _natural(name: str) -> tuple[list[str | int], str]:
    # split() alternates text and number, so that only like is compared with like; the name itself settles 1 and 01.
    return [int(part) if part.isdigit() else part.casefold() for part in re.split(r"(\d+)", name)], name


def split_of(sha256: str, validation_fraction: float) -> Split:
    """Return the split of the file whose bytes have this digest (hexadecimal).

    The digest's first 64 bits, read as a fraction of 1, are uniform on [0, 1): a file keeps its split whatever else
    comes in, its copies follow it, and a larger `validation_fraction` only adds to the validation split.
    """
    return "validation" if int(sha256[:16], 16) / 2**64 < validation_fraction else "train"
