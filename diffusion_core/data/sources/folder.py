"""A folder of the user's own images."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from diffusion_core.choices import Choice
from diffusion_core.data.image_files import image_files, image_suffixes, refuse
from diffusion_core.errors import UserError


@dataclass(frozen=True)
class Folder(Choice):
    """Copies every image file below `path` to the same place below `data/raw`.

    `path` may begin with `~`; else it is relative to the project's folder. Hidden files and folders are left out.
    A file counts as an image by its suffix; whether it decodes is for `prepare` to find out. Nothing is linked: DVC
    must own the bytes that it versions.
    """

    path: Path
    kind: Literal["folder"] = "folder"

    def fetch(self, folder: Path, **_: object) -> int:
        """Copy the images into `folder` and return how many there are.

        Raises:
            UserError: `path` is missing, is no folder, cannot be read, overlaps the folder around `folder` or has no
                image file, or the name of a file is not UTF-8.
        """
        root = self._root(folder.parent)
        images, others, links = image_files(root, "ingest.source.path")
        if others or links:
            print(f"ingest: left out {others} files that are no images and {links} links that lead elsewhere")
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
        except RuntimeError as error:  # `~name` of an unknown user, or a ring of links
            raise UserError(f"ingest.source.path is {self.path}: {error}; correct it in params.yaml") from None
        if not root.exists():
            raise UserError(f"ingest.source.path is {self.path}, which does not exist: correct it in params.yaml")
        if not root.is_dir():
            raise UserError(f"ingest.source.path is {self.path}, which is no folder: name the folder of the images")
        output = output.resolve()
        if root.is_relative_to(output) or output.is_relative_to(root):
            raise UserError(
                f"ingest.source.path is {self.path}, which overlaps {output}, where the pipeline writes:"
                " keep the images in a folder of their own"
            )
        return root
