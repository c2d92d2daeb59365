"""What the sources in one file, or in a folder of such files, have in common."""

import errno
import os
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from diffusion_core.data.sources.names import suffix_of
from diffusion_core.data.sources.stamps import stamp_of
from diffusion_core.errors import UserError
from diffusion_core.files import expanded

# Of one entry; the largest image of `prepare.max_pixels` with 16 bits a sample has fewer.
MOST_BYTES = 2**31


@dataclass(frozen=True)
class Archive:
    """A file that holds many images.

    Attributes:
        key: the key and value of `ingest.source` that name it, for messages.
        path: the file.
        name: its path below the source's folder, without suffix and with `-` between its parts.
        state: text that changes whenever its bytes do; None if nothing shows a change.
    """

    key: str
    path: Path
    name: str
    state: str | None

    def stamp(self, place: object) -> str | None:
        """Return the stamp of the image at a place in the file."""
        return None if self.state is None else f"{self.state} {place}"

    @contextmanager
    def opened(self, *damage: type[Exception]) -> Iterator[BinaryIO]:
        """Open the file for the block; see `opening`."""
        with opening(self.key, self.path, *damage) as file:
            yield file


def archive_at(key: str, path: Path, name: str | None = None) -> Archive:
    """Return the archive at a path.

    Args:
        key: the key and value of `ingest.source` that name it, for messages.
        path: the file.
        name: its name, if not that of the file.

    Raises:
        UserError: it is missing or cannot be read.
    """
    file = expanded(key, path)
    now = time.time_ns()
    with opening(key, file) as opened:
        state = os.fstat(opened.fileno())
    dates = stamp_of(state, now)
    return Archive(key, file, file.stem if name is None else name, dates and f"{dates} {state.st_size}")


def archives_at(key: str, path: Path, suffix: str) -> tuple[list[Archive], Counter[str]]:
    """Return the archive at a path, or all below it in order if it is a folder, and count its other files by suffix.

    Hidden files are ignored.

    Args:
        key: the key and value of `ingest.source` that name the file or folder, for messages.
        path: the file or folder.
        suffix: of the archives in a folder, in lower case and with the dot.

    Raises:
        UserError: the path is missing, cannot be read, or is a folder without such files.
    """
    root = expanded(key, path)
    if not root.is_dir():
        return [archive_at(key, root)], Counter()
    found, others = [], Counter[str]()
    for parent, folders, files in os.walk(root, onerror=lambda error: _refuse(key, error)):
        folders[:] = [each for each in folders if not each.startswith(".")]
        for each in sorted(files):
            if each.startswith("."):
                continue
            if suffix_of(each) == suffix:
                # Also a link, as all files are in the cache of Hugging Face.
                found.append(Path(parent, each))
            else:
                others[suffix_of(each) or "without suffix"] += 1
    if not found:
        raise UserError(f"{key}, a folder without a file *{suffix}: add some, or name another")
    names = ["-".join(file.relative_to(root).with_suffix("").parts) for file in found]
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        raise UserError(f"{key}, where two files are named {twice} once `-` stands for `/`: rename one of the two")
    pairs = sorted(zip(found, names, strict=True))
    return [archive_at(f"{key}, in it {file.relative_to(root)}", file, name) for file, name in pairs], others


def check_size(key: str, name: str, size: int) -> None:
    """Refuse an entry that no image can be, as a bomb.

    Raises:
        UserError: it is larger than `MOST_BYTES`.
    """
    if size > MOST_BYTES:
        raise UserError(f"{key}, which has {name!r} of {size:,} bytes, more than {MOST_BYTES:,}: take it out")


@contextmanager
def opening(key: str, path: Path, *damage: type[Exception]) -> Iterator[BinaryIO]:
    """Open a file for the block.

    Args:
        key: the key and value of `ingest.source` that name the file, for messages.
        path: the file.
        damage: what the block raises where the file is damaged.

    Raises:
        UserError: the file is missing, cannot be read or is damaged.
    """
    damaged: tuple[type[Exception], ...] = (EOFError, zlib.error, *damage)
    try:
        with expanded(key, path).open("rb") as file:
            yield file
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        _refuse(key, error)
    except damaged as error:
        raise _damaged(key, error) from None
    except OSError as error:
        # Decompressors raise it without a number where their data are damaged, and the system with one. A place before
        # the file's beginning is an invalid argument.
        if error.errno not in (None, errno.EINVAL):
            raise
        raise _damaged(key, error) from None


def changed(key: str) -> UserError:
    """Return the error to raise where a file is not the one that was listed."""
    return UserError(f"{key}, which changed while it was read: run the stage again when nothing writes to it")


def _refuse(key: str, error: OSError) -> NoReturn:
    raise UserError(f"{key}, which cannot be read ({error.strerror}): correct it in params.yaml") from None


def _damaged(key: str, error: Exception) -> UserError:
    return UserError(f"{key}, which is damaged or no such file ({error}): bring it again")
