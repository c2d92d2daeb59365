"""A version of the dataset: rows of its manifest, names of its classes, and pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import nsmallest
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from diffusion_core.data.dataset import INFO, DatasetInfo
from diffusion_core.data.manifest import MANIFEST, ManifestRow, read_manifest, rows_of
from diffusion_core.data.shards import map_shard, reading
from diffusion_core.documents import read_small
from diffusion_core.errors import UserError

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Version:
    """A version of the dataset.

    Attributes:
        rows: the rows of its manifest.
        classes: the name of each label.
        shards: the pixels of each shard, uint8 (n, H, W, C).
        decoder: digest of all that decides the pixels of a file.
    """

    rows: Sequence[ManifestRow]
    classes: Sequence[str]
    shards: Sequence[Pixels]
    decoder: str

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the version in `folder`, or None where there is none that can be read."""
        try:
            with reading(folder / INFO):
                info = DatasetInfo.model_validate_json(read_small(folder / INFO))
            rows = rows_of(read_manifest(folder / MANIFEST))
            shape = (*info.image_size, info.channels)
            shards = [map_shard(folder, number, shape) for number in range(len(info.shards))]
        except UserError:
            return None
        lengths = dict(enumerate(map(len, shards)))
        is_whole = all(row.shard is None or row.row in range(lengths.get(row.shard, 0)) for row in rows)
        has_labels = all(row.label is None or row.label < len(info.classes) for row in rows)
        return cls(rows, info.classes, shards, info.decoder) if is_whole and has_labels else None

    @cached_property
    def images(self) -> list[ManifestRow]:
        """The rows of the images in the dataset: neither quarantined nor dropped."""
        return [row for row in self.rows if row.split is not None]

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """(H, W, C), or None without images."""
        return self.shards[0].shape[1:] if self.shards else None

    def class_of(self, row: ManifestRow) -> str | None:
        """Return the name of an image's class."""
        return None if row.label is None else self.classes[row.label]

    def pixels(self, rows: Sequence[ManifestRow]) -> Pixels:
        """Return the pixels of images, uint8 (n, H, W, C)."""
        return np.stack([self.shards[row.shard][row.row] for row in rows if row.shard is not None])


def by_hash(rows: Sequence[ManifestRow], count: int) -> list[ManifestRow]:
    """Return at most `count` images, those with the smallest hashes of their pixels.

    The choice is arbitrary, and the same for the same images. Two versions that share images share the choice.
    """
    return nsmallest(count, rows, key=lambda row: (row.pixels or "", row.source))
