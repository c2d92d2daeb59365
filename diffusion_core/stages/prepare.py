"""Decode data/raw to data/prepared, so that no later stage decodes images."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from diffusion_core.config.settings import PrepareSettings
from diffusion_core.data.dataset import INFO, DatasetInfo, dataset_digest
from diffusion_core.data.labels import class_name, class_names, split_of, strays
from diffusion_core.data.manifest import MANIFEST, ManifestRow, write_manifest
from diffusion_core.data.shards import ShardWriter
from diffusion_core.data.workers import decode_all
from diffusion_core.errors import UserError
from diffusion_core.files import replaced
from diffusion_core.stages.paths import PREPARED, RAW, needs

# The largest sample, as a share of white, below which an image of more than 8 bits seems to hold fewer.
DARK = 1 / 16


def run(prepare: PrepareSettings) -> None:
    """Replace `data/prepared` by shards, manifest and description of the images in `data/raw`.

    After an error `data/prepared` does not change. DVC removes it before this stage; `dvc checkout` restores it.

    Raises:
        UserError: there are no images, no image can be decoded, or a split would be empty.
    """
    files = sorted(file for file in needs(RAW, "ingest").rglob("*") if file.is_file() and not _is_hidden(file))
    if not files:
        raise UserError(f"{RAW} holds no images: fill it with `dvc repro --force --single-item ingest`")
    with replaced(PREPARED) as folder:
        shards = ShardWriter(folder, (*prepare.size, prepare.channels))
        rows = _decode(files, shards, prepare)
        shards.flush()
        classes, rows = _label(rows)
        info = _describe(shards.digests, rows, classes, prepare)
        write_manifest(folder / MANIFEST, rows)
        with (folder / INFO).open("w", encoding="utf-8") as stream:
            stream.write(info.model_dump_json(indent=2) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
    print(f"prepare: {info.train} images to train, {info.validation} to validate, {len(classes)} classes")
    if outside := strays(row.source for row in rows if row.quarantined is None):
        print(
            f"prepare: the folders are not classes, as {len(outside)} images lie in none of them ({outside[0]}):"
            " move these into a folder if you want classes"
        )
    if info.quarantined:
        print(
            f"prepare: left out {info.quarantined} of {len(rows)} files;"
            f" the column `quarantined` of {PREPARED / MANIFEST} says why"
        )


def _is_hidden(file: Path) -> bool:
    """Return whether a file is hidden: an index of a source or a file of the file system."""
    return any(part.startswith(".") for part in file.relative_to(RAW).parts)


def _decode(files: Sequence[Path], shards: ShardWriter, prepare: PrepareSettings) -> list[ManifestRow]:
    """Write the pixels of each file to the shards, and return one row per file without labels."""
    rows = []
    decoded_files = decode_all(files, prepare.decoding)
    used = []
    with tqdm(decoded_files, total=len(files), desc="prepare", unit="image", disable=None) as progress:
        for file, decoded in zip(files, progress, strict=True):
            shard = row = split = None
            if decoded.used is not None:
                used.append(decoded.used)
            if decoded.pixels is not None:
                shard, row = shards.append(decoded.pixels)
                split = split_of(decoded.sha256, prepare.validation_fraction)
            rows.append(
                ManifestRow(
                    source=file.relative_to(RAW).as_posix(),
                    sha256=decoded.sha256,
                    label=None,
                    split=split,
                    shard=shard,
                    row=row,
                    width=decoded.width,
                    height=decoded.height,
                    mode=decoded.mode,
                    quarantined=decoded.reason,
                )
            )
    _warn_of_dark(used)
    return rows


def _warn_of_dark(used: Sequence[float]) -> None:
    """Say how many images of more than 8 bits are nearly black by what their files say of their range."""
    dark = [share for share in used if share < DARK]
    if dark:
        print(
            f"prepare: {len(dark)} of {len(used)} images of more than 8 bits use less than a sixteenth of their range"
            f" ({min(dark):.2%} to {max(dark):.2%} of it), so they are nearly black. If their files hold fewer bits"
            " than they say, set prepare.range to data"
        )


def _label(rows: list[ManifestRow]) -> tuple[list[str], list[ManifestRow]]:
    """Return the classes of the kept images, and the rows with labels."""
    classes = class_names(row.source for row in rows if row.quarantined is None)
    if not classes:
        return [], rows
    labels = {name: label for label, name in enumerate(classes)}
    return classes, [
        row if row.quarantined is not None else replace(row, label=labels[class_name(row.source)]) for row in rows
    ]


def _describe(
    digests: Sequence[str], rows: Sequence[ManifestRow], classes: list[str], prepare: PrepareSettings
) -> DatasetInfo:
    """Return the description of the dataset.

    Raises:
        UserError: no image can be decoded, or a split is empty.
    """
    quarantined = [row for row in rows if row.quarantined is not None]
    train, validation = (sum(row.split == split for row in rows) for split in ("train", "validation"))
    if not train + validation:
        first = "; ".join(f"{row.source}: {row.quarantined}" for row in quarantined[:3])
        raise UserError(
            f"prepare: none of the {len(rows)} files in {RAW} is an image that decodes ({first}):"
            " bring other images by ingest.source"
        )
    if not train or not validation:
        empty, change = ("train", "lower it") if validation else ("validation", "raise it")
        raise UserError(
            f"prepare.validation_fraction is {prepare.validation_fraction}, which leaves no image to the {empty} split"
            f" of {train + validation} images: {change}, or bring more images"
        )
    return DatasetInfo(
        count=train + validation,
        train=train,
        validation=validation,
        quarantined=len(quarantined),
        classes=classes,
        image_size=prepare.size,
        channels=prepare.channels,
        shards=list(digests),
        digest=dataset_digest(digests, rows, classes),
    )
