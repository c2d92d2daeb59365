"""A folder of the user's own images."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from tqdm import tqdm

from diffusion_core.choices import Choice
from diffusion_core.data.formats import image_suffixes
from diffusion_core.errors import UserError


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
    """Copies every image file below `path` to the same relative path in `data/raw`.

    A file is an image if its suffix is; `prepare` checks whether it decodes. Hidden files and folders are ignored.
    Files are copied, not linked, because DVC must own the bytes that it versions.

    Attributes:
        path: the folder; absolute, from `~`, or relative to the project's folder.
    """

    path: Path
    kind: Literal["folder"] = "folder"

    def fetch(self, folder: Path, **_: object) -> int:
        """Copy the images into `folder` and return their number.

        Raises:
            UserError: `path` is missing, is not a folder, cannot be read, overlaps the parent of `folder` or has no
                image file, or the name of a file is not UTF-8.
        """
        root = self._root(folder.parent)
        images, others, links = image_files(root, "ingest.source.path")
        if others or links:
            print(f"ingest: left out {others} files that are not images and {links} links that lead elsewhere")
        if not images:
            suffixes = " ".join(sorted(image_suffixes()))
            raise UserError(f"ingest.source.path is {self.path}, which holds no image ({suffixes}): add some to it")
        for image in tqdm(images, desc="ingest", unit="file", disable=None):
            copy = folder / image.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(image, copy)
            except (PermissionError, FileNotFoundError) as error:
                refuse(error, "ingest.source.path")
        return len(images)

    def _root(self, output: Path) -> Path:
        try:
            root = self.path.expanduser().resolve()
        except RuntimeError as error:  # `~name` of an unknown user, or a cycle of links
            raise UserError(f"ingest.source.path is {self.path}: {error}; correct it in params.yaml") from None
        if not root.exists():
            raise UserError(f"ingest.source.path is {self.path}, which does not exist: correct it in params.yaml")
        if not root.is_dir():
            raise UserError(f"ingest.source.path is {self.path}, which is not a folder: name the folder of the images")
        output = output.resolve()
        if root.is_relative_to(output) or output.is_relative_to(root):
            raise UserError(
                f"ingest.source.path is {self.path}, which overlaps {output}, where the pipeline writes:"
                " keep the images in a folder of their own"
            )
        return root
