"""A folder of the user's own images."""

import os
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from diffusion_core.choices import Choice
from diffusion_core.data.formats import image_suffixes
from diffusion_core.data.sources.item import Item
from diffusion_core.errors import UserError

# Nanoseconds after which a later change of a file has a later date, on any file system.
CERTAIN = 3 * 10**9
# Where the pipeline writes.
DATA = Path("data")


def image_files(root: Path, name: str) -> tuple[list[Path], int, int]:
    """Return the sorted images below `root`, and the numbers of other files and of links that are not followed.

    Hidden files and folders are ignored.

    Args:
        root: the folder, an absolute path without links.
        name: the key or argument that names the folder, for messages.

    Raises:
        UserError: a folder cannot be read, or the name of an image is not UTF-8.
    """
    suffixes = image_suffixes()
    images: list[Path] = []
    others = links = 0
    for parent, folders, names in os.walk(root, onerror=lambda error: refuse(error, name)):
        folders[:] = [folder for folder in folders if not folder.startswith(".")]
        # Links to folders are not followed, because they may form a cycle.
        links += sum(Path(parent, folder).is_symlink() for folder in folders)
        for each in names:
            file = Path(parent, each)
            if each.startswith("."):
                continue
            if file.is_symlink() and not Path(os.path.realpath(file)).is_relative_to(root):
                links += 1
            elif file.suffix.lower() not in suffixes or not file.is_file():
                others += 1
            else:
                images.append(file)
    for image in images:
        try:
            str(image.relative_to(root)).encode()
        except UnicodeEncodeError:
            raise UserError(f"{name} holds {os.fsencode(image)!r}, which is not UTF-8: rename the file") from None
    return sorted(images), others, links


def refuse(error: OSError, name: str) -> NoReturn:
    """Raise a `UserError` about a file or folder that cannot be read."""
    raise UserError(
        f"{name}: {error.filename} cannot be read ({error.strerror}): make it readable or move it away"
    ) from None


@dataclass(frozen=True)
class Folder(Choice):
    """Every image file below `path`; its relative path is its path in `data/raw`.

    A file is an image if its suffix is; `prepare` checks whether it decodes. Hidden files and folders are ignored.

    Attributes:
        path: the folder; absolute, from `~`, or relative to the project's folder.
    """

    path: Path
    kind: Literal["folder"] = "folder"

    def items(self, *_: object) -> list[Item]:
        """Return the images; the stamp of each is its date.

        Raises:
            UserError: `path` is missing, is not a folder, cannot be read, overlaps the pipeline's data or has no image
                file, or the name of a file is not UTF-8.
        """
        root = self._root()
        images, others, links = image_files(root, "ingest.source.path")
        if others or links:
            print(f"ingest: left out {others} files that are not images and {links} links that lead elsewhere")
        if not images:
            suffixes = " ".join(sorted(image_suffixes()))
            raise UserError(f"ingest.source.path is {self.path}, which holds no image ({suffixes}): add some to it")
        now = time.time_ns()
        return [_item(root, image, now) for image in images]

    def contents(self, wanted: Sequence[Item], *_: object) -> Generator[bytes, None, None]:
        """Yield the bytes of each file.

        Raises:
            UserError: a file cannot be read.
        """
        root = self._root()
        for item in wanted:
            try:
                yield (root / item.path).read_bytes()
            except (PermissionError, FileNotFoundError) as error:
                refuse(error, "ingest.source.path")

    def _root(self) -> Path:
        try:
            root = self.path.expanduser().resolve()
        except RuntimeError as error:  # `~name` of an unknown user, or a cycle of links
            raise UserError(f"ingest.source.path is {self.path}: {error}; correct it in params.yaml") from None
        if not root.exists():
            raise UserError(f"ingest.source.path is {self.path}, which does not exist: correct it in params.yaml")
        if not root.is_dir():
            raise UserError(f"ingest.source.path is {self.path}, which is not a folder: name the folder of the images")
        output = DATA.resolve()
        if root.is_relative_to(output) or output.is_relative_to(root):
            raise UserError(
                f"ingest.source.path is {self.path}, which overlaps {output}, where the pipeline writes:"
                " keep the images in a folder of their own"
            )
        return root


def _item(root: Path, file: Path, now: int) -> Item:
    try:
        state = file.stat()
    except OSError as error:
        refuse(error, "ingest.source.path")
    # Renaming and copying keep the first date and change the second.
    dates = (state.st_mtime_ns, state.st_ctime_ns)
    # A file that was written a moment ago may be written again without a change of its dates.
    stamp = " ".join(map(str, dates)) if now - max(dates) > CERTAIN else None
    return Item(file.relative_to(root).as_posix(), state.st_size, stamp)
