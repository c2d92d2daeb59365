"""The manifest of decoded images: label and split of each, and the first of its near-duplicates."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from diffusion_core.data.duplicates import groups
from diffusion_core.data.labels import Place, class_of, classes
from diffusion_core.data.manifest import ManifestRow
from diffusion_core.data.raw import RawFile
from diffusion_core.data.splits import across, splits


def assigned(
    files: Sequence[RawFile],
    decoded: Mapping[str, Sequence[ManifestRow]],
    told: Sequence[Place],
    shards: Sequence[npt.NDArray[np.uint8]],
    fraction: float | None,
    duplicate_distance: float,
    duplicates: Literal["keep", "drop"],
) -> tuple[list[str], list[ManifestRow]]:
    """Return the names of the classes, and the manifest's rows in the order of the files.

    Args:
        files: the files, sorted by path.
        decoded: the rows of each file, by its sha256, whose pixels lie in the shards.
        told: what the source says of each file.
        shards: the pixels.
        fraction: of the images to validate, where the source names no splits; None where it does.
        duplicate_distance: of near-duplicates, as a share of their contrast.
        duplicates: keep all near-duplicates, or drop all but the first of each from the splits.
    """
    all_rows = [(file, row, place) for file, place in zip(files, told, strict=True) for row in decoded[file.sha256]]
    kept = [row for _, row, _ in all_rows if row.quarantined is None]
    places_kept = [place for _, row, place in all_rows if row.quarantined is None]
    names = classes(places_kept, [place for _, row, place in all_rows if row.quarantined is not None])
    numbers: dict[str | None, int] = {name: number for number, name in enumerate(names)}
    digests = [row.pixels or "" for row in kept]
    group = groups(
        [row.sha256 for row in kept],
        [row.perceptual_hash or 0 for row in kept],
        digests,
        lambda number: _pixels(kept[number], shards),
        duplicate_distance,
    )
    split = splits([place.split for place in places_kept], digests, group, fraction)
    first: dict[int, str] = {}
    found = iter(zip(group.tolist(), split, strict=True))
    rows, of_group = [], []
    for file, row, place in all_rows:
        # What an earlier manifest says of these is not of this file.
        label = own = duplicate = None
        if row.quarantined is None:
            number, own = next(found)
            original = first.setdefault(number, file.path)
            duplicate = None if original == file.path else original
            own = None if duplicate is not None and duplicates == "drop" else own
            label = numbers.get(class_of(place))
            if own is not None:
                of_group.append((number, own))
        rows.append(replace(row, source=file.path, label=label, split=own, duplicate_of=duplicate))
    if leaked := across([number for number, _ in of_group], [own for _, own in of_group]):
        print(
            f"prepare: images of validation or test with near-duplicates to train on: {leaked:,}. The source names"
            " their splits: set prepare.duplicates to drop, or remove them from one"
        )
    return names, rows


def _pixels(row: ManifestRow, shards: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    assert row.shard is not None
    return shards[row.shard][row.row]
