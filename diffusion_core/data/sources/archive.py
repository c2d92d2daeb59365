"""What the sources in one file have in common."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from diffusion_core.errors import UserError

# Of one entry; the largest image of `prepare.max_pixels` with 16 bits a sample has fewer.
MOST_BYTES = 2**31


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
        with path.expanduser().open("rb") as file:
            yield file
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UserError(f"{key}, which cannot be read ({error.strerror}): correct it in params.yaml") from None
    except damaged as error:
        raise UserError(f"{key}, which is damaged or no such file ({error}): bring it again") from None
