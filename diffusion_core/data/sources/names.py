"""Which names in a source are those of images."""

from collections import Counter
from collections.abc import Collection, Iterable
from itertools import pairwise

from diffusion_core.data.formats import image_suffixes
from diffusion_core.errors import UserError

# Maximum bytes of a file name on Linux.
LONGEST_NAME = 255


def is_image(name: str) -> bool:
    """Return whether a name has the suffix of an image and no hidden part."""
    return suffix_of(name) in image_suffixes() and not any(
        part.startswith(".") and part not in (".", "..") for part in name.split("/")
    )


def suffix_of(name: str) -> str:
    """Return the suffix of a name, in lower case and with the dot, or no text."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return f".{suffix.lower()}" if dot and stem else ""


def image_names(names: Iterable[str], key: str, *, used: Collection[str] = ()) -> list[str]:
    """Return those names that are of images, in order, and print which others are left out.

    Args:
        names: paths of files in the source, with `/` between their parts.
        key: the key and value of `ingest.source` that name the source, for messages.
        used: names that are not images and not left out.

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
        parts = name.split("/")
        if {"", ".", ".."} & set(parts) or "\0" in name or max(len(part.encode()) for part in parts) > LONGEST_NAME:
            raise UserError(f"{key}, which has {name!r}: that is not a path of a file, so rename it")
    images.sort()
    if twice := next((name for name, after in pairwise(images) if name == after), None):
        raise UserError(f"{key}, which has {twice!r} twice: rename one of the two")
    if not images:
        raise UserError(
            f"{key}, which holds no image ({' '.join(sorted(image_suffixes()))}): add some, or name another"
        )
    return images


def tell_left_out(others: Counter[str], kind: str = "files that are hidden or no images") -> None:
    """Print how many files of each suffix are left out, the most frequent first."""
    if others:
        suffixes = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        print(f"ingest: left out {others.total()} {kind} ({suffixes}{', ...' if len(others) > 5 else ''})")
