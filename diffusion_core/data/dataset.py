"""The prepared dataset: its description and access to its images."""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Self, get_args

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from diffusion_core.data.manifest import MANIFEST, ManifestRow, Split, read_manifest
from diffusion_core.data.shards import check_shard, map_shard, read_ahead, reading
from diffusion_core.documents import read_small

INFO = "dataset.json"


class DatasetInfo(BaseModel):
    """The content of `dataset.json`.

    Attributes:
        count: images, `train + validation + test`; with `quarantined` and `dropped` it is the number of files.
        train: images of the training split.
        validation: images of the validation split.
        test: images of the test split, which no stage uses.
        quarantined: files that do not become images.
        dropped: near-duplicates that are left out.
        classes: the name of each label; empty if images have no labels.
        image_size: height and width in pixels.
        channels: 1 (gray), 3 (RGB) or 4 (RGBA).
        shards: sha256 of each shard; where a shard has pixels that no row of the manifest names, these are not used.
        decoder: digest of the code, libraries and settings that made the pixels of the files.
        digest: sha256 of pixels, labels, splits and class names; equal for equal datasets, whatever their shards.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int
    train: int
    validation: int
    test: int
    quarantined: int
    dropped: int
    classes: list[str]
    image_size: tuple[int, int]
    channels: int
    shards: list[str]
    decoder: str
    digest: str


def dataset_digest(rows: Sequence[ManifestRow], classes: Sequence[str], shape: tuple[int, int, int]) -> str:
    """Return the sha256 of the pixels, labels and splits of the images, in order, of shape and class names."""
    kept = [row for row in rows if row.split is not None]
    columns = [[row.pixels for row in kept], [row.label for row in kept], [row.split for row in kept]]
    identity = [*columns, classes, shape]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


class ImageDataset:
    """Images and labels of one split or of all; pixels are read from disk on access.

    Attributes:
        info: the content of `dataset.json`, with the counts of the whole dataset.
        labels: indices in `info.classes`, int64 (N,), or None if there are no classes.
    """

    def __init__(
        self,
        info: DatasetInfo,
        shards: Sequence[npt.NDArray[np.uint8]],
        shard: npt.NDArray[np.int64],
        row: npt.NDArray[np.int64],
        labels: npt.NDArray[np.int64] | None,
        sources: npt.NDArray[np.str_] | None = None,
    ) -> None:
        self.info = info
        self.labels = labels
        self._sources = sources
        self._shards = shards
        self._shard = shard
        self._row = row

    @classmethod
    def open(cls, folder: Path, split: Split | None = None) -> Self:
        """Open the dataset in `folder`, and compare its pixels with their hashes; images are in the manifest's order.

        Args:
            folder: the output of `prepare`.
            split: the split to open, or None for all.

        Raises:
            UserError: a file is missing or damaged, or the files do not fit each other.
        """
        with reading(folder / INFO):
            info = DatasetInfo.model_validate_json(read_small(folder / INFO))
        manifest = read_manifest(folder / MANIFEST)
        with reading(folder / MANIFEST):
            kept = manifest.filter(manifest["split"].is_valid())
            names = ("split", "shard", "row", "label", "source")
            splits, shard, row, labels, sources = (kept[name].to_numpy() for name in names)
            counts = [*(np.sum(splits == name) for name in get_args(Split)), len(kept), len(manifest)]
            files = info.count + info.quarantined + info.dropped
            if counts != [info.train, info.validation, info.test, info.count, files]:
                raise ValueError(f"its counts are not those of {INFO}")
            if info.classes and not set(labels.tolist()) <= set(range(len(info.classes))):
                raise ValueError(f"it has labels that are not classes of {INFO}")
            # Before counting, which takes memory for each number up to the largest.
            if len(kept) and not 0 <= shard.min() <= shard.max() < len(info.shards):
                raise ValueError(f"its shards are not those of {INFO}")
        for number, sha256 in enumerate(info.shards):
            check_shard(folder, number, sha256)
        image_shape = (*info.image_size, info.channels)
        shards = [map_shard(folder, number, image_shape) for number in range(len(info.shards))]
        with reading(folder / MANIFEST):
            rows = np.array([len(each) for each in shards])
            if not ((row >= 0) & (row < rows[shard])).all():
                raise ValueError("it names rows that its shards do not have")
        wanted = np.full(len(kept), True) if split is None else splits == split
        of_classes = labels[wanted] if info.classes else None
        return cls(info, shards, shard[wanted], row[wanted], of_classes, sources[wanted])

    def __len__(self) -> int:
        return len(self._shard)

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels of all images."""
        return len(self) * math.prod(self.info.image_size) * self.info.channels

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Number of images of each label; empty if there are no classes."""
        if self.labels is None:
            return ()
        return tuple(np.bincount(self.labels, minlength=len(self.info.classes)).tolist())

    def sources(self, indices: npt.NDArray[np.integer]) -> list[str]:
        """Return the paths in the source of the images at `indices`, or their indices if the paths are not known."""
        known = indices if self._sources is None else self._sources[indices]
        return [str(each) for each in known]

    def images(self, indices: npt.NDArray[np.integer] | slice | None = None) -> npt.NDArray[np.uint8]:
        """Return the images at `indices`, in that order, or all: uint8 (n, H, W, C).

        Raises:
            IndexError: an index is out of range.
        """
        chosen = slice(None) if indices is None else indices
        shard, row = self._shard[chosen], self._row[chosen]
        images = np.empty((len(shard), *self.info.image_size, self.info.channels), np.uint8)
        for number in np.unique(shard):
            here = shard == number
            images[here] = self._shards[number][row[here]]
        return images

    def read_ahead(self, indices: npt.NDArray[np.integer]) -> None:
        """Let the system begin to read the images at `indices` into its cache."""
        shard, row = self._shard[indices], self._row[indices]
        for number in np.unique(shard):
            read_ahead(self._shards[number], row[shard == number])
