"""Images in a zip file."""

import stat
import zipfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path
from typing import Literal

from diffusion_core.choices import Choice
from diffusion_core.data.sources.archive import Archive, archive_at, changed, check_size
from diffusion_core.data.sources.item import Item
from diffusion_core.data.sources.metadata import labelled, table_names
from diffusion_core.data.sources.names import image_names

# Bytes of an entry that are unpacked at once.
PART = 2**13
# What zipfile raises for bytes that cannot be right. UnicodeDecodeError is a ValueError.
DAMAGE = (zipfile.BadZipFile, RuntimeError, NotImplementedError, LZMAError, ValueError, IndexError, KeyError)


@dataclass(frozen=True)
class Zip(Choice):
    """Every image in a zip file; nothing is unpacked to the disk.

    Links and hidden files are left out. A file `labels.csv`, `metadata.csv` or `metadata.jsonl` names the classes.

    Attributes:
        path: the file; absolute, from `~`, or relative to the project's folder.
    """

    path: Path
    kind: Literal["zip"] = "zip"

    def items(self, *_: object) -> list[Item]:
        """Return the images; the stamp of each is its CRC-32.

        Raises:
            UserError: the file is missing, damaged, encrypted or has no image, or an entry is refused.
        """
        return ZipImages(self._archive()).items()

    def contents(self, wanted: Sequence[Item], *_: object) -> Generator[bytes, None, None]:
        """Yield the bytes of each.

        Raises:
            UserError: the file is damaged or has changed.
        """
        return ZipImages(self._archive()).contents(wanted)

    def _archive(self) -> Archive:
        return archive_at(f"ingest.source.path is {self.path}", self.path)


@dataclass(frozen=True)
class ZipImages:
    """The images in a zip file, with the errors of `Zip`."""

    archive: Archive

    def items(self) -> list[Item]:
        """Return the images by path."""
        key = self.archive.key
        with self._opened() as archive:
            infos = [info for info in archive.infolist() if _is_file(info)]
            files = {info.filename: info for info in infos}
            tables = table_names(files)
            items = []
            for name in image_names([info.filename for info in infos], key, used=tables):
                check_size(key, name, files[name].file_size)
                items.append(Item(name, files[name].file_size, f"{files[name].CRC:08x}"))
            for name in tables:
                check_size(key, name, files[name].file_size)
            return labelled(items, {name: _bytes(archive, files[name]) for name in tables}, key)

    def contents(self, wanted: Sequence[Item]) -> Generator[bytes, None, None]:
        """Yield the bytes of each."""
        with self._opened() as archive:
            files = {info.filename: info for info in archive.infolist() if _is_file(info)}
            for item in wanted:
                if item.path not in files:
                    raise changed(self.archive.key)
                # Not by its name, which a link may have too.
                yield _bytes(archive, files[item.path])

    @contextmanager
    def _opened(self) -> Generator[zipfile.ZipFile, None, None]:
        with self.archive.opened(*DAMAGE) as file, zipfile.ZipFile(file) as archive:
            yield archive


def _bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    # In parts, because an entry may hold far more than it says, and would be unpacked before it is cut.
    with archive.open(info) as stream:
        return b"".join(iter(lambda: stream.read(PART), b""))


def _is_file(info: zipfile.ZipInfo) -> bool:
    mode = info.external_attr >> 16
    return not info.is_dir() and stat.S_IFMT(mode) in (0, stat.S_IFREG)
