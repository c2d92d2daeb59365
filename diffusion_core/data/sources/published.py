"""What a dataset that its publishers have on the web consists of."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from diffusion_core.data.sources.archive import Archive
from diffusion_core.data.sources.item import Item


@dataclass(frozen=True)
class PublishedFile:
    """A file of a dataset.

    Attributes:
        url: its address.
        sha256: of its bytes.
    """

    url: str
    sha256: str


class Images(Protocol):
    """The images in files on the disk."""

    def items(self) -> list[Item]:
        """Return the images, in the order in which `contents` reads them."""
        ...

    def contents(self, wanted: Sequence[Item]) -> Generator[bytes, None, None]:
        """Yield the bytes of each."""
        ...


class Open(Protocol):
    """Makes `Images` of a dataset's files."""

    def __call__(self, archives: Mapping[str, Archive]) -> Images:
        """Return the images.

        Args:
            archives: the files, by their names in the dataset.
        """
        ...
