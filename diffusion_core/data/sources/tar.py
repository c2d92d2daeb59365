"""Images in a tar file."""

from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffusion_core.choices import Choice
from diffusion_core.data.sources.archive import Archive, archive_at, changed, check_size
from diffusion_core.data.sources.item import Item
from diffusion_core.data.sources.metadata import labelled, table_names
from diffusion_core.data.sources.names import image_names, tell_left_out
from diffusion_core.data.sources.tar_file import entries


@dataclass(frozen=True)
class Tar(Choice):
    """Every image in a tar file, which gzip, bzip2 or xz may have compressed; nothing is unpacked to the disk.

    Links, devices and hidden files are left out. A file `labels.csv`, `metadata.csv` or `metadata.jsonl` names the
    classes.

    Attributes:
        path: the file; absolute, from `~`, or relative to the project's folder.
    """

    path: Path
    kind: Literal["tar"] = "tar"

    def items(self, *_: object) -> list[Item]:
        """Return the images in the order of the file; the stamp of each is the file's date and its place.

        Raises:
            UserError: the file is missing, damaged or has no image, or an entry is refused.
        """
        return TarImages(self._archive()).items()

    def contents(self, wanted: Sequence[Item], *_: object) -> Generator[bytes, None, None]:
        """Yield the bytes of each.

        Raises:
            UserError: the file is damaged or has changed.
        """
        return TarImages(self._archive()).contents(wanted)

    def _archive(self) -> Archive:
        return archive_at(f"ingest.source.path is {self.path}", self.path)


@dataclass(frozen=True)
class TarImages:
    """The images in a tar file, with the errors of `Tar`."""

    archive: Archive

    def items(self) -> list[Item]:
        """Return the images in the order of the file."""
        key, others = self.archive.key, Counter[str]()
        found: list[tuple[str, int, int]] = []
        tables: dict[str, bytes] = {}
        for entry in entries(self.archive, others):
            found.append((entry.name, entry.size, entry.offset))
            if table_names([entry.name]):
                check_size(key, entry.name, entry.size)
                tables[entry.name] = entry.read()
        tell_left_out(others, "entries that are not files")
        names = {*image_names((name for name, _, _ in found), key, used=tables)}
        items = []
        for name, size, offset in found:
            if name in names:
                check_size(key, name, size)
                items.append(Item(name, size, self.archive.stamp(offset)))
        return labelled(items, tables, key)

    def contents(self, wanted: Sequence[Item]) -> Generator[bytes, None, None]:
        """Yield the bytes of each."""
        left = iter(wanted)
        # Sought for in the order of the file, so that it is decompressed once.
        if (item := next(left, None)) is None:
            return
        for entry in entries(self.archive, Counter()):
            if entry.name == item.path and entry.size == item.size:
                yield entry.read()
                if (item := next(left, None)) is None:
                    return
        raise changed(self.archive.key)
