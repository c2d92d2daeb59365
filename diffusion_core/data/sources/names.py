"""Which names in a source are those of images, and what names say."""

import re
from collections import Counter
from collections.abc import Collection, Iterable
from itertools import pairwise

from diffusion_core.data.formats import image_suffixes
from diffusion_core.errors import UserError

# Maximum bytes of a file name on Linux.
LONGEST_NAME = 255
# Words for splits, which no letter precedes or follows.
SPLIT = re.compile(r"(?<![a-z])(train|training|val|valid|validation|dev|test|testing)(?![a-z])")
# How files begin: a prefix, and what follows it after some bytes.
MAGIC = (
    (b"\xff\xd8\xff", 0, b"", ".jpg"),
    (b"\x89PNG\r\n\x1a\n", 0, b"", ".png"),
    (b"GIF8", 0, b"", ".gif"),
    (b"BM", 0, b"", ".bmp"),
    (b"II*\0", 0, b"", ".tif"),
    (b"MM\0*", 0, b"", ".tif"),
    (b"RIFF", 8, b"WEBP", ".webp"),
    (b"", 4, b"ftypavif", ".avif"),
    (b"", 4, b"ftyphei", ".heic"),
    (b"", 4, b"jP  ", ".jp2"),
    (b"\xff\x4f\xff\x51", 0, b"", ".j2k"),
    (b"", 4, b"JXL ", ".jxl"),
    (b"\xff\x0a", 0, b"", ".jxl"),
)
MAGIC_BYTES = 16


def is_image(name: str) -> bool:
    """Return whether a name has the suffix of an image and no hidden part."""
    return suffix_of(name) in image_suffixes() and not any(
        part.startswith(".") and part not in (".", "..") for part in name.split("/")
    )


def suffix_of(name: str) -> str:
    """Return the suffix of a name, in lower case and with the dot, or no text."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return f".{suffix.lower()}" if dot and stem else ""


def suffix_of_content(head: bytes) -> str:
    """Return the suffix of the format of a file that begins with these `MAGIC_BYTES`, or no text."""
    return next(
        (
            suffix
            for start, place, magic, suffix in MAGIC
            if head.startswith(start) and head[place : place + len(magic)] == magic
        ),
        "",
    )


def split_of_name(name: str) -> str | None:
    """Return the split that the name of a file with many images says, as `train-00000-of-00002`, or None."""
    found = SPLIT.findall(name.lower())
    return "validation" if found[-1:] == ["dev"] else next(reversed(found), None)


def image_names(names: Iterable[str], key: str, *, used: Collection[str] = ()) -> list[str]:
    """Return those names that are of images, in order, and print which others were left out.

    Args:
        names: paths of files in the source, with `/` between their parts.
        key: the key and value of `ingest.source` that name the source, for messages.
        used: names of other files that are not left out.

    Raises:
        UserError: there is no image; a name is not a path below the source; or one is there twice.
    """
    images, others = [], Counter[str]()
    for name in names:
        if is_image(name):
            images.append(name)
        elif name not in used:
            others[suffix_of(name) or "without suffix"] += 1
    tell_left_out(others)
    for name in images:
        if not _is_path(name):
            raise UserError(f"{key}, which has {name!r}: that is not a path of a file, so rename it")
    images.sort()
    if twice := next((name for name, after in pairwise(images) if name == after), None):
        raise UserError(f"{key}, which has {twice!r} twice: rename one of the two")
    if not images:
        raise UserError(
            f"{key}, which holds no image ({' '.join(sorted(image_suffixes()))}): add some, or name another"
        )
    return images


def _is_path(name: str) -> bool:
    parts = name.split("/")
    try:
        lengths = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        return False
    return not {"", ".", ".."} & set(parts) and "\0" not in name and max(lengths) <= LONGEST_NAME


def tell_left_out(others: Counter[str], kind: str = "files that are hidden or no images") -> None:
    """Print how many files of each suffix are left out, the most frequent first."""
    if others:
        suffixes = ", ".join(
            f"{count} {suffix}" for suffix, count in sorted(others.items(), key=lambda each: (-each[1], each[0]))[:5]
        )
        told = f"ingest: left out {kind}: {others.total():,} ({suffixes}{', ...' if len(others) > 5 else ''})"
        # Names that are not UTF-8 cannot be printed.
        print(told.encode(errors="backslashreplace").decode())
