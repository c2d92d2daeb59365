"""`data/raw` as a dictionary of paths and bytes, there and back."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from diffusion_core.data.raw import PACK_BYTES, PackWriter, RawFile, read_index, write_index
from diffusion_core.data.sources.item import Item

NONE: dict[str, str] = {}


def pack(
    folder: Path,
    images: Mapping[str, bytes],
    *,
    labels: Mapping[str, str] = NONE,
    splits: Mapping[str, str] = NONE,
    pack_bytes: int = PACK_BYTES,
) -> list[RawFile]:
    """Replace `folder` by packs of these images and their index; return the images by path."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    writer = PackWriter(folder, pack_bytes=pack_bytes)
    for path, content in images.items():
        writer.add(Item(path, len(content), None, labels.get(path), splits.get(path)), content)
    write_index(folder, writer.close())
    return read_index(folder)


def unpacked(folder: Path) -> dict[str, bytes]:
    """Return the bytes of each image in `folder` by path."""
    return {file.path: file.read(folder) for file in read_index(folder)}


def packs(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return the inode and the bytes of each pack in `folder` by name."""
    return {file.name: (file.stat().st_ino, file.read_bytes()) for file in folder.glob("*.zip")}
