"""A folder of the user's own images."""

import os
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from diffusion_core.choices import Choice
from diffusion_core.data.formats import image_suffixes
from diffusion_core.data.sources.archive import check_size
from diffusion_core.data.sources.item import Item
from diffusion_core.data.sources.metadata import TABLES, labelled
from diffusion_core.data.sources.names import suffix_of, tell_left_out
from diffusion_core.data.sources.stamps import stamp_of
from diffusion_core.errors import UserError

# Where the pipeline writes.
DATA = Path("data")


@dataclass(frozen=True)
class Found:
    """What lies in a folder.

    Attributes:
        images: sorted.
        tables: tables of labels, sorted.
        others: number of the other files, by suffix.
        links: number of the links that are not followed.
    """

    images: list[Path]
    tables: list[Path]
    others: Counter[str]
    links: int


def image_files(root: Path, name: str, *, follow_links: bool = False) -> Found:
    """Return what lies below `root`. Hidden files and folders are ignored.

    Args:
        root: the folder, an absolute path without links.
        name: the key or argument that names the folder, for messages.
        follow_links: to files and folders elsewhere; each folder is read once, so that links may form a cycle.

    Raises:
        UserError: a folder cannot be read, or the name of an image is not UTF-8.
    """
    images: list[Path] = []
    tables: list[Path] = []
    others, links = Counter[str](), 0
    for parent, names, linked in _folders(root, name, follow_links=follow_links):
        links += 0 if follow_links else linked
        for each in names:
            file = parent / each
            if each.startswith("."):
                continue
            if not follow_links and file.is_symlink() and not _leads_into(root, file):
                links += 1
            elif not _is_file(file, name):
                others[suffix_of(each) or "without suffix"] += 1
            elif suffix_of(each) in image_suffixes():
                images.append(file)
            elif each in TABLES:
                tables.append(file)
            else:
                others[suffix_of(each) or "without suffix"] += 1
    for image in images:
        try:
            str(image.relative_to(root)).encode()
        except UnicodeEncodeError:
            raise UserError(f"{name} holds {os.fsencode(image)!r}, which is not UTF-8: rename the file") from None
    return Found(sorted(images), sorted(tables), others, links)


def _folders(root: Path, name: str, *, follow_links: bool) -> Iterator[tuple[Path, list[str], int]]:
    """Yield each folder with its files, and how many links to folders it has."""
    visited: set[tuple[int, int]] = set()
    # Links come after all that lies in the folder itself, so that this keeps its own path.
    tops = deque([root])
    while tops:
        for parent, folders, names in os.walk(tops.popleft(), onerror=lambda error: refuse(error, name)):
            state = Path(parent).stat()
            if (state.st_dev, state.st_ino) in visited:
                folders.clear()
                continue
            visited.add((state.st_dev, state.st_ino))
            folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
            linked = [folder for folder in folders if Path(parent, folder).is_symlink()]
            if follow_links:
                tops += [Path(parent, folder) for folder in linked]
            yield Path(parent), sorted(names), len(linked)


def _is_file(file: Path, name: str) -> bool:
    try:
        return file.is_file()
    except OSError as error:  # a link into a folder that may not be entered
        refuse(error, name)


def _leads_into(folder: Path, link: Path) -> bool:
    return Path(os.path.realpath(link)).is_relative_to(folder)


def refuse(error: OSError, name: str) -> NoReturn:
    """Raise a `UserError` about a file or folder that cannot be read."""
    raise UserError(
        f"{name}: {error.filename} cannot be read ({error.strerror}): make it readable or move it away"
    ) from None


@dataclass(frozen=True)
class Folder(Choice):
    """Every image file below `path`; its relative path is its path in `data/raw`.

    A file is an image if its suffix is; `prepare` checks whether it decodes. Hidden files and folders are ignored. A
    file `labels.csv`, `metadata.csv` or `metadata.jsonl` names the classes.

    Attributes:
        path: the folder; absolute, from `~`, or relative to the project's folder.
        follow_links: to files and folders outside of the folder; without it they are left out.
    """

    path: Path
    follow_links: bool = False
    kind: Literal["folder"] = "folder"

    def items(self, *_: object) -> list[Item]:
        """Return the images; the stamp of each is its date.

        Raises:
            UserError: `path` is missing, is not a folder, cannot be read, or overlaps the pipeline's data. Or it has no
                image file, a file is larger than any image, its name is not UTF-8, or a table is wrong.
        """
        root = self._root()
        found = image_files(root, "ingest.source.path", follow_links=self.follow_links)
        tell_left_out(found.others, "files that are not images")
        if found.links:
            print(f"ingest: left out links that lead elsewhere: {found.links:,}; follow_links: true follows them")
        if not found.images:
            suffixes = " ".join(sorted(image_suffixes()))
            raise UserError(f"{self._key}, which holds no image ({suffixes}): add some to it")
        if self.follow_links:
            self._refuse_output(found.images)
        now = time.time_ns()
        tables = {table.relative_to(root).as_posix(): self._table(table) for table in found.tables}
        items = [_item(root, image, now) for image in found.images]
        for item in items:
            check_size(self._key, item.path, item.size or 0)
        return labelled(items, tables, self._key)

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

    @property
    def _key(self) -> str:
        return f"ingest.source.path is {self.path}"

    def _table(self, file: Path) -> bytes:
        try:
            check_size(self._key, file.name, file.stat().st_size)
            return file.read_bytes()
        except (PermissionError, FileNotFoundError) as error:
            refuse(error, "ingest.source.path")

    def _refuse_output(self, images: Sequence[Path]) -> None:
        output = DATA.resolve()
        if inside := next((image for image in images if _leads_into(output, image)), None):
            raise UserError(
                f"{self._key}, where {inside} leads to {output}, where the pipeline writes: remove the link"
            )

    def _root(self) -> Path:
        try:
            root = self.path.expanduser().resolve()
        except RuntimeError as error:  # `~name` of an unknown user, or a cycle of links
            raise UserError(f"{self._key}: {error}; correct it in params.yaml") from None
        if not root.exists():
            raise UserError(f"{self._key}, which does not exist: correct it in params.yaml")
        if not root.is_dir():
            raise UserError(f"{self._key}, which is not a folder: name the folder of the images")
        output = DATA.resolve()
        if root.is_relative_to(output) or output.is_relative_to(root):
            raise UserError(
                f"{self._key}, which overlaps {output}, where the pipeline writes:"
                " keep the images in a folder of their own"
            )
        return root


def _item(root: Path, file: Path, now: int) -> Item:
    try:
        state = file.stat()
    except OSError as error:
        refuse(error, "ingest.source.path")
    return Item(file.relative_to(root).as_posix(), state.st_size, stamp_of(state, now))
