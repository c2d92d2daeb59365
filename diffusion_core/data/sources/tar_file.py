"""Reads tar files in the order of their entries, also compressed ones; nothing is unpacked to the disk."""

import bz2
import gzip
import lzma
import tarfile
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import BinaryIO, cast

from diffusion_core.data.sources.archive import Archive
from diffusion_core.errors import UserError

# What tarfile and the decompressors raise where a file is damaged.
DAMAGE = (tarfile.TarError, lzma.LZMAError, ValueError, OverflowError, RecursionError)
# Of a header, which tarfile reads at once; those of real files have a few hundred bytes.
MOST_HEADER_BYTES = 2**20
CHUNK = 2**20
BLOCK = 512
LONGEST_MAGIC = 6
ZSTD = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True)
class Entry:
    """A file in a tar file.

    Attributes:
        name: its path, without parts that are `.`.
        size: bytes.
        offset: where its header begins, in the tar file without compression.
        read: returns its bytes, until the next entry is asked for.
    """

    name: str
    size: int
    offset: int
    read: Callable[[], bytes]


def entries(archive: Archive, others: Counter[str]) -> Generator[Entry, None, None]:
    """Yield the files in a tar file, in its order. Links, devices, pipes and sparse files are left out.

    Args:
        archive: the file.
        others: counts what is left out.

    Raises:
        UserError: the file is missing, damaged, does not end as a tar file does, or is compressed with zstd.
    """
    with archive.opened(*DAMAGE) as file:
        stream = _Stream(_decompressed(archive, file))
        with tarfile.TarFile(fileobj=cast(BinaryIO, stream), encoding="utf-8") as tar:
            while (info := tar.next()) is not None:
                # A list of all entries, which millions of them would make long.
                tar.members.clear()  # type: ignore[attr-defined]
                # Otherwise tarfile would return to what it has read, for ever.
                if info.size < 0:
                    raise tarfile.ReadError(f"an entry has {info.size} bytes")
                if info.isreg() and not info.issparse():
                    name = "/".join(part for part in info.name.split("/") if part != ".")
                    yield Entry(name, info.size, info.offset, lambda info=info: _content(tar, info))  # type: ignore[misc]
                elif not info.isdir():
                    others[_kind(info)] += 1
        stream.check_end()


def _decompressed(archive: Archive, file: BinaryIO) -> BinaryIO:
    magic = file.read(LONGEST_MAGIC)
    file.seek(0)
    if magic.startswith(ZSTD):
        raise UserError(f"{archive.key}, which is compressed with zstd: compress it with gzip or xz instead")
    if magic.startswith(b"\x1f\x8b"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    if magic.startswith(b"BZh"):
        return cast(BinaryIO, bz2.BZ2File(file))
    if magic.startswith(b"\xfd7zXZ\0"):
        return cast(BinaryIO, lzma.LZMAFile(file))
    return file


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(info)
    assert file is not None
    # In parts, because `_Stream` returns no more at once.
    return b"".join(iter(lambda: file.read(CHUNK), b""))


def _kind(info: tarfile.TarInfo) -> str:
    if info.islnk() or info.issym():
        return "links"
    if info.isfifo():
        return "pipes"
    return "sparse files" if info.issparse() else "devices or unknown"


class _Stream:
    """What tarfile reads from. It refuses what would fill the memory or never end."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._last = b""
        self._is_at_end = False

    def read(self, size: int) -> bytes:
        if not 0 <= size <= max(MOST_HEADER_BYTES, CHUNK):
            raise tarfile.ReadError(f"a header has {size:,} bytes")
        self._last = self._stream.read(size)
        if size and not self._last:
            if self._is_at_end:
                raise tarfile.ReadError("it ends within an entry")
            self._is_at_end = True
        return self._last

    def seek(self, position: int) -> int:
        return self._stream.seek(position)

    def tell(self) -> int:
        return self._stream.tell()

    def check_end(self) -> None:
        """Refuse a file that does not end as a tar file does; tarfile takes damage of a header for the end.

        Raises:
            tarfile.ReadError: the last header is not the end, or bytes follow.
        """
        if self._last != bytes(BLOCK):
            raise tarfile.ReadError("it is cut off, or a header is damaged")
        # To the end, where a decompressor compares checksums.
        while rest := self._stream.read(CHUNK):
            if rest.strip(b"\0"):
                raise tarfile.ReadError("bytes follow its end, as if two files had been joined")
