"""Files whose md5 is known, as those of DVC's cache: which have rotted, and how sound ones take their place."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from diffusion_core.files import flush, temporary_beside
from diffusion_core.parallel import in_parallel

HASHING_THREADS = 4
# What DVC appends to the hash of a folder's list.
FOLDER = ".dir"


def is_sound(file: Path, entry: str) -> bool:
    """Return whether a file has the bytes that an entry's hash says."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False))
    return digest.hexdigest() == entry.removesuffix(FOLDER)


def rotten(files: Iterable[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """Return those hashes and files whose bytes are others or cannot be read; a file that is missing is not rotten."""

    def has_rotted(each: tuple[str, Path]) -> bool:
        try:
            return not is_sound(each[1], each[0])
        except FileNotFoundError:
            return False
        except OSError:
            return True

    listed = list(files)
    answers = in_parallel(has_rotted, listed, HASHING_THREADS)
    return [each for each, is_rotten in zip(listed, answers, strict=True) if is_rotten]


def is_whole(file: Path, entry: str) -> bool:
    """Return whether a file is there and sound."""
    return file.is_file() and not rotten([(entry, file)])


def put(
    path: Path, entry: str, mode: int, write: Callable[[Path], object], may: Callable[[], bool] = lambda: True
) -> bool:
    """Write a file beside `path`, and rename it to `path` if it is sound and if it may; return whether it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = temporary_beside(path)
    try:
        write(new)
        if not is_sound(new, entry):
            return False
        new.chmod(mode)
        flush(new)
        if not may():
            return False
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    flush(path.parent)
    return True
