"""`data/raw`: the bytes of the images as they came, in few large files, and an index of where each lies.

A pack is an uncompressed zip file, so that any tool opens it, and its name is the sha256 of its bytes. Millions of
small files would cost DVC and a bucket a call each. Packs that a new version does not change keep name and bytes.
"""

import hashlib
import os
import re
import zipfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from diffusion_core.data.compaction import worth_keeping
from diffusion_core.data.sources.item import Item
from diffusion_core.errors import UserError
from diffusion_core.files import sha256_of
from diffusion_core.parallel import in_parallel

INDEX = "index.parquet"
PACK_BYTES = 64 * 2**20
PACK = re.compile(r"[0-9a-f]{64}\.zip")
# All entries have the earliest date of a zip file, so that equal images give equal bytes.
DATE = (1980, 1, 1, 0, 0, 0)
HASHING_THREADS = 4
ENTRY_BYTES = 76

SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("stamp", pa.string()),
        pa.field("pack", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("split", pa.string()),
    ]
)


@dataclass(frozen=True)
class RawFile:
    """An image file of the source.

    Attributes:
        path: its path in the source, with `/` between its parts.
        sha256: sha256 of its bytes, in hexadecimal.
        size: bytes.
        stamp: what the source says of its version, as an ETag; None if it says nothing.
        pack: name of the pack.
        offset: where its bytes begin in the pack.
        label: name of its class, where the source has a table of them.
        split: name of its split, where the source has a table of them.
    """

    path: str
    sha256: str
    size: int
    stamp: str | None
    pack: str
    offset: int
    label: str | None = None
    split: str | None = None

    def read(self, folder: Path) -> bytes:
        """Return its bytes.

        Args:
            folder: data/raw.

        Raises:
            UserError: the pack is missing or damaged.
        """
        try:
            with (folder / self.pack).open("rb") as stream:
                if not 0 <= self.offset <= self.offset + self.size <= os.fstat(stream.fileno()).st_size:
                    raise _damaged(folder / self.pack, f"it has no bytes where {INDEX} has those of {self.path}")
                stream.seek(self.offset)
                content = stream.read(self.size)
        except FileNotFoundError:
            raise _damaged(folder / self.pack, "it is missing") from None
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise _damaged(folder / self.pack, f"the sha256 of {self.path} differs from {INDEX}")
        return content


class PackWriter:
    """Writes images into packs of about `pack_bytes`; images that are there already are not written again.

    Args:
        folder: the folder of the packs.
        known: images in packs that lie in the folder already.
        pack_bytes: a pack is closed at this size.
    """

    def __init__(self, folder: Path, known: Iterable[RawFile] = (), *, pack_bytes: int = PACK_BYTES) -> None:
        self._folder = folder
        self._pack_bytes = pack_bytes
        # Of each sha256, the pack and the place in it.
        self._places = {file.sha256: (file.pack, file.offset) for file in known}
        self._in_open: dict[str, int] = {}
        self._added: list[RawFile] = []
        self._open: _OpenPack | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # After an error, as of a full disk, the folder is removed, and the archive would fail to end itself later.
        if self._open is not None:
            self._open.abandon()

    def add(self, item: Item, content: bytes) -> None:
        """Add an image."""
        path, sha256 = item.path, hashlib.sha256(content).hexdigest()
        self._added.append(RawFile(path, sha256, len(content), item.stamp, "", 0, item.label, item.split))
        if sha256 in self._places or sha256 in self._in_open:
            return
        if self._open is None:
            self._open = _OpenPack(self._folder / ".pack.zip")
        self._in_open[sha256] = self._open.add(path, content)
        if self._open.size >= self._pack_bytes:
            self._end_pack(self._open)

    def close(self) -> list[RawFile]:
        """Close the last pack and return the images that were added, in their order."""
        if self._open is not None:
            self._end_pack(self._open)
        places = ((file, *self._places[file.sha256]) for file in self._added)
        return [replace(file, pack=pack, offset=offset) for file, pack, offset in places]

    def _end_pack(self, pack: "_OpenPack") -> None:
        name = pack.close()
        self._places |= {sha256: (name, offset) for sha256, offset in self._in_open.items()}
        self._in_open, self._open = {}, None


class _OpenPack:
    def __init__(self, file: Path) -> None:
        self.size = 0
        self._file = file
        self._stream = file.open("w+b")
        self._archive = zipfile.ZipFile(self._stream, "w")

    def add(self, path: str, content: bytes) -> int:
        """Add a file and return where its bytes begin."""
        self._archive.writestr(zipfile.ZipInfo(path, DATE), content)
        self.size = self._stream.tell()
        return self.size - len(content)

    def abandon(self) -> None:
        """Close the file, whose content no longer matters."""
        for each in (self._archive, self._stream):
            with suppress(OSError, ValueError):
                each.close()

    def close(self) -> str:
        """Close the pack, rename it to its sha256 and return its name."""
        self._archive.close()
        self._stream.close()
        name = f"{sha256_of(self._file)}.zip"
        self._file.rename(self._file.with_name(name))
        return name


def whole_packs(folder: Path, files: Iterable[RawFile]) -> frozenset[str]:
    """Return the packs of these images whose bytes are those that were written."""
    packs = sorted({file.pack for file in files})
    whole = in_parallel(lambda pack: _is_whole(folder / pack), packs, HASHING_THREADS)
    return frozenset(pack for pack, is_whole in zip(packs, whole, strict=True) if is_whole)


def _is_whole(pack: Path) -> bool:
    return pack.is_file() and sha256_of(pack) == pack.stem


def packs_to_keep(folder: Path, files: Iterable[RawFile], *, grows: bool) -> set[str]:
    """Return the packs that stay as they are; see `worth_keeping`.

    Args:
        folder: data/raw.
        files: the images that stay.
        grows: whether images are added.
    """
    used: dict[str, int] = {}
    # Copies of an image share its place.
    for file in {(file.pack, file.offset): file for file in files}.values():
        # A zip file has the name of each entry twice, beside 76 bytes about it.
        used[file.pack] = used.get(file.pack, 0) + file.size + 2 * len(file.path.encode()) + ENTRY_BYTES
    sizes = {pack: (folder / pack).stat().st_size for pack in used}
    return worth_keeping(used, sizes, PACK_BYTES, grows=grows)


def write_index(folder: Path, files: Sequence[RawFile]) -> None:
    """Write the index; equal images give equal bytes."""
    ordered = sorted(files, key=lambda file: file.path)
    table = pa.table({name: [getattr(file, name) for file in ordered] for name in SCHEMA.names}, SCHEMA)
    pq.write_table(table, folder / INDEX, compression="zstd", write_page_checksum=True)


def read_index(folder: Path) -> list[RawFile]:
    """Return the images by path.

    Raises:
        UserError: the index is missing or damaged.
    """
    try:
        table = pq.read_table(folder / INDEX, page_checksum_verification=True)
        if not table.schema.equals(SCHEMA):
            raise ValueError("its columns are not those of an index")
        files = list(map(RawFile, *(table[field.name].to_pylist() for field in fields(RawFile))))
        if not all(PACK.fullmatch(pack) for pack in {file.pack for file in files}):
            raise ValueError("it names a pack whose name is not a sha256")
    except FileNotFoundError:
        raise UserError(f"{folder / INDEX} is missing: make it with `dvc repro --force --single-item ingest`") from None
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise _damaged(folder / INDEX, error) from None
    return files


def _damaged(file: Path, problem: object) -> UserError:
    return UserError(
        f"{file} is damaged ({problem}): remove {file.parent} and make it again with `dvc repro --force --single-item"
        " ingest`"
    )
