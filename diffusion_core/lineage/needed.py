"""Which entries of DVC's cache are needed, and what they are copies of."""

from collections.abc import Mapping
from dataclasses import dataclass

ROTTEN = "has rotted"


@dataclass(frozen=True)
class Output:
    """What an entry is the copy of.

    Attributes:
        path: its path in the project.
        source: what names it, such as `the stage train`.
        again: how it is made again.
    """

    path: str
    source: str
    again: str

    def __str__(self) -> str:
        return f"{self.path} of {self.source}"


@dataclass(frozen=True)
class Needed:
    """The entries that are needed, and why others may be needed too.

    Attributes:
        entries: what something names, by the hashes of all its files.
        unread: what could not be read, such as a branch, and why.
        unlisted: outputs whose list of files is missing or has rotted, and which of the two.
    """

    entries: Mapping[str, Output]
    unread: Mapping[str, str]
    unlisted: Mapping[str, str]

    @property
    def unknown(self) -> str | None:
        """Say why entries that are not in `entries` may be needed, and the remedy; None if they are not."""
        for what, why in self.unread.items():
            return f"{what} cannot be read ({why}): correct it"
        for output, why in self.unlisted.items():
            remedy = "say `diffusion verify --repair`" if why == ROTTEN else "try `dvc fetch --all-branches --all-tags`"
            return f"the list of files of the output {self.entries[output]} {why}: {remedy}"
        return None
