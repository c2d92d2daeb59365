"""Images in a zip file."""

import lzma
import stat
import zipfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffusion_core.choices import Choice
from diffusion_core.data.sources.archive import check_size, opening
from diffusion_core.data.sources.item import Item
from diffusion_core.data.sources.metadata import labelled, table_names
from diffusion_core.data.sources.names import image_names

# Bytes of an entry that are unpacked at once.
PART = 2**13


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
        with self._opened() as archive:
            entries = [info for info in archive.infolist() if _is_file(info)]
            files = {info.filename: info for info in entries}
            tables = table_names(files)
            items = []
            # Of the entries, as a name may be there twice.
            for name in image_names([info.filename for info in entries], self._key, used=tables):
                check_size(self._key, name, files[name].file_size)
                items.append(Item(name, files[name].file_size, f"{files[name].CRC:08x}"))
            for name in tables:
                check_size(self._key, name, files[name].file_size)
            return labelled(items, {name: _bytes(archive, name) for name in tables}, self._key)

    def contents(self, wanted: Sequence[Item], *_: object) -> Generator[bytes, None, None]:
        """Yield the bytes of each.

        Raises:
            UserError: the file is damaged.
        """
        with self._opened() as archive:
            for item in wanted:
                yield _bytes(archive, item.path)

    @property
    def _key(self) -> str:
        return f"ingest.source.path is {self.path}"

    @contextmanager
    def _opened(self) -> Generator[zipfile.ZipFile, None, None]:
        # OSError is bzip2's word for damage, and of a place that no file has; ValueError is that of names.
        damage = (zipfile.BadZipFile, RuntimeError, NotImplementedError, lzma.LZMAError, OSError, ValueError)
        with opening(self._key, self.path, *damage) as file, zipfile.ZipFile(file) as archive:
            yield archive


def _bytes(archive: zipfile.ZipFile, name: str) -> bytes:
    # In parts, as an entry may hold far more than it says, and would be unpacked before it is cut.
    with archive.open(name) as stream:
        return b"".join(iter(lambda: stream.read(PART), b""))


def _is_file(info: zipfile.ZipInfo) -> bool:
    mode = info.external_attr >> 16
    return not info.is_dir() and stat.S_IFMT(mode) in (0, stat.S_IFREG)
