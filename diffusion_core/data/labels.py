"""The class of an image and the split that its source gives it: from a table, or from the names of its folders."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from diffusion_core.counts import count_of
from diffusion_core.data.manifest import Split
from diffusion_core.errors import UserError

FirstFolder = Literal["auto", "class", "split"]

SPLITS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True)
class Place:
    """What a source says of an image.

    Attributes:
        folder: the folder that may be its class, or None if it lies in none.
        label: its class by a table, or None.
        split: its split by a table or a folder, or None.
    """

    folder: str | None
    label: str | None
    split: Split | None


def places(
    paths: Sequence[str], labels: Sequence[str | None], splits: Sequence[str | None], first: FirstFolder
) -> list[Place]:
    """Return what folders and tables say of each image.

    Args:
        paths: path of each image in its source.
        labels: class of each by a table, or None.
        splits: name of the split of each by a table, or None.
        first: whether the first folder of a path is a class or a split. "auto" means a split if all images lie in
            folders with names of splits. One of these must be `train`.

    Raises:
        UserError: a name is not that of a split.
    """
    tops = {_folders(path)[0] if _folders(path) else None for path in paths}
    named = {SPLITS.get(top.lower()) if top else None for top in tops}
    if first == "split" and None in named:
        odd = sorted(str(top or "no folder") for top in tops if not top or top.lower() not in SPLITS)
        raise UserError(
            f"prepare.first_folder is split, and images lie in {', '.join(odd[:3])}: rename these folders to one of"
            f" {', '.join(SPLITS)}"
        )
    if first == "auto" and "train" in named and len(named - {None}) > 1 and None in named:
        odd = sorted(str(top or "no folder") for top in tops if not top or top.lower() not in SPLITS)
        raise UserError(
            f"some images lie in folders named for splits, and others in {', '.join(odd[:3])}: move these, or set"
            " prepare.first_folder to class"
        )
    are_splits = first == "split" or (first == "auto" and None not in named and "train" in named)
    found = []
    for path, label, split in zip(paths, labels, splits, strict=True):
        folders = _folders(path)
        by_folder = SPLITS[folders[0].lower()] if are_splits else None
        rest = folders[1:] if are_splits else folders
        found.append(Place(rest[0] if rest else None, label, by_folder if split is None else _split(path, split)))
    return found


def classes(kept: Sequence[Place], quarantined: Sequence[Place]) -> list[str]:
    """Return the names of the classes in natural order (`9` before `10`).

    They are the labels of a table or, without one, the folders. The list is empty, so that images have no labels, if
    there is no table and an image lies in no folder or all lie in one.

    Args:
        kept: the places of the images.
        quarantined: the places of the files without an image.

    Raises:
        UserError: some images alone have a label, a class has lost all its images, or two names differ in case alone.
    """
    by_table = any(place.label is not None for place in kept)
    counts = Counter(place.label if by_table else place.folder for place in kept)
    if by_table and counts[None]:
        raise UserError(
            f"{counts[None]} of {len(kept)} images have no label, and the others have one in a table: add their rows"
        )
    lost = Counter(place.label if by_table else place.folder for place in quarantined)
    if None in counts or (len({*counts, *lost} - {None}) < 2 and not by_table):
        return []
    names = sorted((name for name in counts if name is not None), key=_natural)
    if gone := sorted(name for name in lost if name is not None and name not in counts):
        told = ", ".join(f"{name} ({count_of(lost[name], 'file')})" for name in gone)
        raise UserError(f"prepare: no file of the classes {told} decodes: correct these files, or remove them")
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(name.casefold(), []).append(name)
    if same := next((each for each in alike.values() if len(each) > 1), None):
        told = " and ".join(f"{name} ({count_of(counts[name], 'image')})" for name in same)
        raise UserError(f"prepare: the classes {told} differ in case alone: give them one name, or two others")
    return names


def class_of(place: Place) -> str | None:
    """Return the name of an image's class, where its source has classes."""
    return place.folder if place.label is None else place.label


def strays(paths: Iterable[str], found: Iterable[Place]) -> list[str]:
    """Return the images in no folder, if the folders of the other images would otherwise be classes."""
    pairs = [*zip(paths, found, strict=True)]
    if any(place.label is not None for _, place in pairs) or len({place.folder for _, place in pairs} - {None}) < 2:
        return []
    return [path for path, place in pairs if place.folder is None]


def _folders(path: str) -> list[str]:
    return path.split("/")[:-1]


def _split(path: str, name: str) -> Split:
    if (split := SPLITS.get(name.lower())) is None:
        raise UserError(f"the table of {path} has the split {name!r}: write one of {', '.join(SPLITS)}")
    return split


def _natural(name: str) -> tuple[list[str | tuple[int, str]], str]:
    # split() alternates text and number, so that equal types are compared; the name at the end orders 1 and 01.
    # Without the zeros before it, the longer of two numbers is the greater one, however long both are.
    parts = re.split(r"([0-9]+)", name)
    return [(len(part.lstrip("0")), part.lstrip("0")) if part.isdecimal() else part.casefold() for part in parts], name
