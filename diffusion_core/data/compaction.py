"""Which of the large files that hold many images stay as they are when images come and go."""

from collections.abc import Mapping
from typing import TypeVar

Name = TypeVar("Name", str, int)


def worth_keeping(used: Mapping[Name, int], sizes: Mapping[Name, int], full: int, *, grows: bool) -> set[Name]:
    """Return the files that stay. The images of the others are written again, with the new ones.

    A file stays if at least half of it is used. Where there are new images, small files are joined with them.
    So a file for each night does not stay for ever, and what is written again is at most an eighth of a full file.

    Args:
        used: of each file, how much of it is wanted.
        sizes: of each file, how much it holds.
        full: how much a full file holds.
        grows: whether there are new images.
    """
    least = full // 8 if grows else 0
    return {name for name in used if sizes[name] >= least and 2 * used[name] >= sizes[name]}
