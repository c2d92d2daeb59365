"""Decode data/raw to data/prepared, so that no later stage decodes images, and report what is there."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import get_args

import numpy as np
import numpy.typing as npt

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import PrepareSettings
from diffusion_core.counts import count_of
from diffusion_core.data.assignment import assigned
from diffusion_core.data.dataset import INFO, DatasetInfo, dataset_digest
from diffusion_core.data.decode import Decoded
from diffusion_core.data.decoding import Decoding
from diffusion_core.data.earlier import Earlier
from diffusion_core.data.labels import Place, places, strays
from diffusion_core.data.manifest import MANIFEST, ManifestRow, Split, write_manifest
from diffusion_core.data.raw import RawFile, read_index
from diffusion_core.data.report.page import page
from diffusion_core.data.report.quarantine import reasons
from diffusion_core.data.report.statistics import Statistics
from diffusion_core.data.report.version import Pixels, Version
from diffusion_core.data.shards import ShardWriter, map_shard
from diffusion_core.data.workers import decode_all
from diffusion_core.errors import UserError, is_out_of_memory
from diffusion_core.files import replaced, replaced_files
from diffusion_core.lineage.provenance import code_files, json_digest
from diffusion_core.metrics.features import extract
from diffusion_core.metrics.reference import load_extractor
from diffusion_core.progress import Progress
from diffusion_core.stages.limits import check_dataset, check_decoded
from diffusion_core.stages.paths import DATA_METRICS, DATA_PAGE, PREPARED, RAW, REFERENCE, needs

# Pixels of the images whose features are computed at once.
FEATURE_PIXELS = 2**18
# The largest sample, as a share of white, below which an image of more than 8 bits seems to hold fewer.
DARK = 1 / 16
# What decides the pixels of a file, beside the settings.
DECODER = ("bit_depth", "color", "crops", "decode", "decoding", "duplicates", "formats", "framing", "readers")
CODE = tuple(f"data/{name}.py" for name in DECODER)
LIBRARIES = ("pillow", "numpy", "simplejpeg", "imagecodecs", "tifffile")


def run(prepare: PrepareSettings, environment: Environment | None = None) -> None:
    """Replace `data/prepared` by shards, manifest and description of the images in `data/raw`, and the report of them.

    Images that the last run decoded, by the same code and settings, are not decoded again. After an error
    `data/prepared` and the report do not change.

    Args:
        prepare: the section of params.yaml.
        environment: the environment, whose Ray cluster decodes if it names one; None for this machine alone.

    Raises:
        UserError: there are no images, no image can be decoded, a split would be empty, or a limit is crossed.
        Unavailable: the Ray cluster does not answer.
    """
    files = read_index(needs(RAW, "ingest"))
    if not files:
        raise UserError(f"{RAW} holds no images: fill it with `dvc repro --force --single-item ingest`")
    told = places(
        [file.path for file in files],
        [file.label for file in files],
        [file.split for file in files],
        prepare.first_folder,
    )
    decoder = _decoder(prepare.decoding)
    image_shape = (*prepare.size, prepare.channels)
    earlier = Earlier.of(PREPARED, decoder, image_shape, {file.sha256 for file in files})
    with replaced_files([DATA_METRICS, DATA_PAGE]) as report, replaced(PREPARED) as folder:
        shards = ShardWriter(folder, image_shape, earlier.link(folder))
        cluster = None if environment is None else environment.ray_address
        decoded = _decode(files, earlier, shards, prepare, cluster)
        shards.flush()
        _warn_of_dark([first.used for first, *_ in decoded.values() if first.used is not None])
        pixels = [map_shard(folder, number, shards.image_shape) for number in range(len(shards.digests))]
        outcomes = [decoded[file.sha256][0] for file in files]
        check_decoded(prepare.limits, [file.path for file in files], outcomes)
        # Also where none of them decodes: splits of the source are not changed in silence.
        is_told = any(place.split == "validation" for place in told)
        fraction = None if is_told else prepare.validation_fraction
        names, rows = assigned(files, decoded, told, pixels, fraction, prepare.duplicate_distance, prepare.duplicates)
        if is_told:
            _check_told(rows, dict(zip((file.path for file in files), told, strict=True)))
        info = _describe(shards.digests, rows, names, prepare, decoder)
        earlier_version = Version.read(PREPARED)
        statistics = Statistics.of(
            Version(rows, names, pixels, decoder), earlier_version, _features(image_shape) if earlier_version else None
        )
        if statistics.is_redecoded:
            print(
                "prepare: other code, libraries or settings made the earlier pixels, so their drift is not measured;"
                " that of the sizes is"
            )
        check_dataset(prepare.limits, statistics)
        (report / DATA_METRICS.name).write_text(json.dumps(statistics.document(), indent=2) + "\n", encoding="utf-8")
        (report / DATA_PAGE.name).write_text(page(statistics, reasons(RAW, files, outcomes)), encoding="utf-8")
        write_manifest(folder / MANIFEST, rows)
        with (folder / INFO).open("w", encoding="utf-8") as stream:
            stream.write(info.model_dump_json(indent=2) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
    _tell(info, rows, dict(zip((file.path for file in files), told, strict=True)))


def _features(image_shape: tuple[int, ...]) -> Callable[[Pixels], npt.NDArray[np.float64] | None] | None:
    """Return what computes features by the extractor of the last evaluation, or None where it is of other images."""
    if not REFERENCE.exists():
        return None
    try:
        extractor = load_extractor(REFERENCE)
    except UserError as error:
        print(f"prepare: drift of the features is not measured: {error}")
        return None
    if (*extractor.image_size, extractor.channels) != image_shape:
        return None
    batch_size = max(1, FEATURE_PIXELS // (image_shape[0] * image_shape[1]))

    def features(pixels: Pixels) -> npt.NDArray[np.float64] | None:
        try:
            found = extract(extractor, pixels, batch_size).astype(np.float64)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            print("prepare: drift of the features is not measured, because memory is too small")
            return None
        return found if np.isfinite(found).all() else None

    return features


def _tell(info: DatasetInfo, rows: Sequence[ManifestRow], told: Mapping[str, Place]) -> None:
    tests = f", {info.test} to test" if info.test else ""
    print(f"prepare: {info.train} images to train, {info.validation} to validate{tests}, {len(info.classes)} classes")
    kept = [row.source for row in rows if row.quarantined is None and row.part == 0]
    if outside := strays(kept, [told[source] for source in kept]):
        print(
            f"prepare: the folders are not classes, as {len(outside)} images lie in none of them ({outside[0]}):"
            " move these into a folder if you want classes"
        )
    if same := sum(row.duplicate_of is not None for row in rows):
        are_told = any(place.split == "validation" for place in told.values())
        where = "in the splits that the source names" if are_told else "in the split of the first of each"
        done = "left out" if info.dropped else f"kept {where}"
        print(f"prepare: near-duplicates of other images: {same:,}; they are {done}; see the column `duplicate_of`")
    if info.quarantined:
        print(
            f"prepare: left out {info.quarantined} of {len(told)} files; {DATA_PAGE} shows why, and so does the column"
            f" `quarantined` of {PREPARED / MANIFEST}"
        )
    print(f"prepare: {DATA_PAGE} shows the images")


def _decoder(wanted: Decoding) -> str:
    """Return a digest of all that decides the pixels of a file."""
    libraries = {name: version(name) for name in LIBRARIES}
    return json_digest([asdict(wanted), code_files(*CODE), libraries])


def _decode(
    files: Sequence[RawFile], earlier: Earlier, shards: ShardWriter, prepare: PrepareSettings, cluster: str | None
) -> dict[str, list[ManifestRow]]:
    """Write the pixels that no shard has to the shards, and return the rows of each file by its sha256."""
    found = dict(earlier.kept)
    first = {file.sha256: file for file in files if file.sha256 not in found}
    with Progress("prepare", len(first), "files") as progress:
        for sha256, images in _new(first, earlier, prepare, cluster):
            found[sha256] = [_placed(row, pixels, shards) for row, pixels in images]
            progress.add(1)
    return found


def _placed(row: ManifestRow, pixels: npt.NDArray[np.uint8] | None, shards: ShardWriter) -> ManifestRow:
    shard, place = (None, None) if pixels is None else shards.append(pixels)
    return replace(row, shard=shard, row=place)


def _new(
    files: Mapping[str, RawFile], earlier: Earlier, prepare: PrepareSettings, cluster: str | None
) -> Iterator[tuple[str, Sequence[tuple[ManifestRow, npt.NDArray[np.uint8] | None]]]]:
    """Yield the sha256 of each of these files, with rows without a place and pixels; those of earlier are copied."""
    unknown = [file for sha256, file in files.items() if sha256 not in earlier.moved]
    if cluster is None:
        decoded = decode_all(RAW, unknown, prepare.decoding)
    else:
        # Imported here, because only those who name a cluster have Ray.
        from diffusion_core.data.cluster import decode_on_cluster

        libraries = {name: version(name) for name in LIBRARIES}
        decoded = decode_on_cluster(RAW, unknown, prepare.decoding, cluster, libraries)
    for sha256, file in files.items():
        if sha256 in earlier.moved:
            yield sha256, earlier.moved[sha256]
        else:
            yield sha256, _images(file, next(decoded))


def _images(file: RawFile, decoded: Decoded) -> list[tuple[ManifestRow, npt.NDArray[np.uint8] | None]]:
    row = ManifestRow(
        source=file.path,
        sha256=file.sha256,
        part=0,
        label=None,
        split=None,
        shard=None,
        row=None,
        width=decoded.width,
        height=decoded.height,
        mode=decoded.mode,
        used=decoded.used,
        pixels=None,
        perceptual_hash=None,
        duplicate_of=None,
        quarantined=decoded.reason,
    )
    if not decoded.parts:
        return [(row, None)]
    return [
        (replace(row, part=number, pixels=part.sha256, perceptual_hash=part.perceptual_hash), part.pixels)
        for number, part in enumerate(decoded.parts)
    ]


def _warn_of_dark(used: Sequence[float]) -> None:
    """Say how many images of more than 8 bits are nearly black by what their files say of their range."""
    dark = [share for share in used if share < DARK]
    if dark:
        print(
            f"prepare: {len(dark)} of {len(used)} images of more than 8 bits use less than a sixteenth of their range"
            f" ({min(dark):.2%} to {max(dark):.2%} of it), so they are nearly black. If their files hold fewer bits"
            " than they say, set prepare.range to data"
        )


def _check_told(rows: Sequence[ManifestRow], told: Mapping[str, Place]) -> None:
    """Check that no split is empty where the source names them.

    Raises:
        UserError: one is.
    """
    for name in ("train", "validation"):
        lost = [row for row in rows if told[row.source].split == name and row.quarantined is not None]
        if any(row.split == name for row in rows) or len(lost) == len(rows):
            continue
        why = (
            f" (it has lost {count_of(len(lost), 'file')}, as {lost[0].source}: {lost[0].quarantined})" if lost else ""
        )
        raise UserError(
            f"ingest.source names the splits of its images, and none is left to the {name} split{why}: add images to"
            " it, or name no splits, for folders by prepare.first_folder: class"
        )


def _describe(
    digests: Sequence[str],
    rows: Sequence[ManifestRow],
    names: list[str],
    prepare: PrepareSettings,
    decoder: str,
) -> DatasetInfo:
    """Return the description of the dataset.

    Raises:
        UserError: no image can be decoded, or a split is empty.
    """
    quarantined = [row for row in rows if row.quarantined is not None]
    count = {name: sum(row.split == name for row in rows) for name in get_args(Split)}
    if not any(count.values()):
        first = "; ".join(f"{row.source}: {row.quarantined}" for row in quarantined[:3])
        raise UserError(
            f"prepare: none of the {len(rows)} files in {RAW} is an image that decodes ({first}):"
            " bring other images by ingest.source"
        )
    empty = next((name for name in ("train", "validation") if not count[name]), None)
    if empty is not None:
        raise UserError(
            f"prepare.validation_fraction is {prepare.validation_fraction}, which leaves no image to the {empty} split"
            f" of {sum(count.values())} images: {'lower' if empty == 'train' else 'raise'} it, or bring more images"
        )
    return DatasetInfo(
        count=sum(count.values()),
        **count,
        quarantined=len(quarantined),
        dropped=sum(row.split is None and row.quarantined is None for row in rows),
        classes=names,
        image_size=prepare.size,
        channels=prepare.channels,
        shards=list(digests),
        decoder=decoder,
        digest=dataset_digest(rows, names, (*prepare.size, prepare.channels)),
    )
