"""What the last run of `prepare` made, so that the next one decodes only what is new."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from diffusion_core.data.compaction import worth_keeping
from diffusion_core.data.dataset import INFO, DatasetInfo
from diffusion_core.data.manifest import MANIFEST, ManifestRow, read_manifest, rows_of
from diffusion_core.data.shards import check_shard, images_per_shard, map_shard, reading, shard_file
from diffusion_core.documents import read_small
from diffusion_core.errors import UserError
from diffusion_core.files import link


class Earlier:
    """The images of an earlier dataset that are wanted again.

    Args:
        folder: the dataset.
        rows: rows of the images of each file, by its sha256.
        shards: the pixels of each shard that the rows name, by number.
        digests: the sha256 of each shard.
        stays: the shards that stay as they are.

    Attributes:
        kept: the rows of files all of whose shards stay, with their new numbers.
        moved: the other rows, with the pixels that are to be written again, uint8 (H, W, C).
    """

    def __init__(
        self,
        folder: Path,
        rows: Mapping[str, Sequence[ManifestRow]],
        shards: Mapping[int, npt.NDArray[np.uint8]],
        digests: Sequence[str],
        stays: Collection[int],
    ) -> None:
        self._folder = folder
        self._digests = digests
        self._stays = sorted(stays)
        numbers = {old: new for new, old in enumerate(self._stays)}
        self.kept: dict[str, list[ManifestRow]] = {}
        self.moved: dict[str, list[tuple[ManifestRow, npt.NDArray[np.uint8]]]] = {}
        for sha256, each in rows.items():
            if all(row.shard in numbers for row in each):
                self.kept[sha256] = [_renumbered(row, numbers) for row in each]
            else:
                self.moved[sha256] = [(row, shards[_shard(row)][row.row]) for row in each]

    @classmethod
    def of(cls, folder: Path, decoder: str, image_shape: tuple[int, int, int], wanted: Collection[str]) -> Self:
        """Return what an earlier dataset has of the images that are wanted; nothing if another decoder made it.

        What is damaged, or was quarantined, is decoded again.

        Args:
            folder: the dataset; may be missing.
            decoder: digest of what decides the pixels.
            image_shape: (H, W, C) of these.
            wanted: the sha256 of each file.
        """
        try:
            with reading(folder / INFO):
                info = DatasetInfo.model_validate_json(read_small(folder / INFO))
            rows = rows_of(read_manifest(folder / MANIFEST)) if info.decoder == decoder else None
        except UserError:
            rows = None
        if rows is None:
            return cls(folder, {}, {}, [], [])
        shards: dict[int, npt.NDArray[np.uint8]] = {}
        for number, sha256 in enumerate(info.shards):
            with suppress(UserError):
                check_shard(folder, number, sha256)
                shards[number] = map_shard(folder, number, image_shape)
        lengths = {number: len(pixels) for number, pixels in shards.items()}
        found: dict[str, list[ManifestRow]] = {}
        for row in rows:
            if row.sha256 in wanted and row.quarantined is None:
                found.setdefault(row.sha256, []).append(row)
        found = {sha256: each for sha256, each in found.items() if all(_is_there(row, lengths) for row in each)}
        # Copies of a file have rows of their own, with the same places.
        found = {sha256: [*{row.part: row for row in each}.values()] for sha256, each in found.items()}
        places = {(_shard(row), row.row) for each in found.values() for row in each}
        used = Counter(shard for shard, _ in places)
        grows = len(found) < len({*wanted})
        stays = worth_keeping(used, lengths, images_per_shard(image_shape), grows=grows)
        return cls(folder, found, shards, info.shards, stays)

    def link(self, folder: Path) -> list[str]:
        """Link the shards that stay into a folder, and return the sha256 of each."""
        for new, old in enumerate(self._stays):
            link(shard_file(self._folder, old), shard_file(folder, new))
        return [self._digests[number] for number in self._stays]


def _is_there(row: ManifestRow, lengths: Mapping[int, int]) -> bool:
    return row.shard is not None and row.row in range(lengths.get(row.shard, 0))


def _shard(row: ManifestRow) -> int:
    assert row.shard is not None
    return row.shard


def _renumbered(row: ManifestRow, numbers: Mapping[int, int]) -> ManifestRow:
    new = numbers[_shard(row)]
    return row if new == row.shard else replace(row, shard=new)
