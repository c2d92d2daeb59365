"""The dataset returns the images that were written, and refuses files that do not belong together."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffusion_core.data.dataset import DatasetInfo, ImageDataset, dataset_digest
from diffusion_core.data.manifest import ManifestRow, read_manifest, rows_of, write_manifest
from diffusion_core.data.shards import ShardWriter
from diffusion_core.errors import UserError

SHAPE = (2, 3, 4)
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 2, 3, 4), np.uint8)
SPLITS = ["train", "validation", "train", "train", "validation", "train", "test"]
LABELS = [0, 1, 1, 0, 0, 1, 1]
TRAIN = [0, 2, 3, 5]
ROW = ManifestRow(
    source="0",
    sha256="0" * 64,
    part=0,
    label=0,
    split="train",
    shard=0,
    row=0,
    width=2,
    height=2,
    mode="RGB",
    used=None,
    pixels="a" * 64,
    perceptual_hash=1,
    duplicate_of=None,
    quarantined=None,
)
NO_IMAGE = replace(
    ROW, **dict.fromkeys(("label", "split", "shard", "row", "width", "height", "mode", "pixels", "perceptual_hash"))
)


def write(folder: Path, classes: list[str]) -> Path:
    """Seven images in shards of three; between them a file that was quarantined, and a copy that was dropped."""
    folder.mkdir()
    writer = ShardWriter(folder, (2, 3, 4), shard_bytes=3 * 24)
    rows = []
    for number, image in enumerate(IMAGES):
        label = LABELS[number] if classes else None
        shard, place = writer.append(image)
        pixels = hashlib.sha256(image.tobytes()).hexdigest()
        rows.append(
            replace(ROW, source=f"{number}", label=label, split=SPLITS[number], shard=shard, row=place, pixels=pixels)
        )
    rows.insert(4, replace(NO_IMAGE, source="bad", quarantined="the file is empty"))
    rows.insert(2, replace(rows[0], source="copy", label=None, split=None, duplicate_of="0"))
    writer.flush()
    write_manifest(folder / "manifest.parquet", rows)
    info = DatasetInfo(
        count=7,
        train=4,
        validation=2,
        test=1,
        quarantined=1,
        dropped=1,
        classes=classes,
        image_size=(2, 3),
        channels=4,
        shards=writer.digests,
        decoder="none",
        digest=dataset_digest(rows, classes, SHAPE),
    )
    (folder / "dataset.json").write_text(info.model_dump_json())
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "prepared", ["cat", "dog"])


def test_all_images_and_labels_come_back(folder: Path) -> None:
    dataset = ImageDataset.open(folder)
    assert len(dataset) == 7
    np.testing.assert_array_equal(dataset.images(), IMAGES)
    np.testing.assert_array_equal(dataset.labels, LABELS)
    assert dataset.images().dtype == np.uint8
    assert dataset.labels.dtype == np.int64
    assert dataset.class_counts == (3, 4)
    assert ImageDataset.open(folder, "train").class_counts == (2, 2)


def test_a_split_has_its_images_only(folder: Path) -> None:
    train, validation = ImageDataset.open(folder, "train"), ImageDataset.open(folder, "validation")
    assert (len(train), len(validation)) == (train.info.train, train.info.validation) == (4, 2)
    np.testing.assert_array_equal(train.images(), IMAGES[TRAIN])
    np.testing.assert_array_equal(train.labels, np.take(LABELS, TRAIN))
    np.testing.assert_array_equal(validation.images(), IMAGES[[1, 4]])
    np.testing.assert_array_equal(ImageDataset.open(folder, "test").images(), IMAGES[[6]])


@pytest.mark.parametrize(
    "indices",
    [np.array([3, 0, 3, -1]), np.array([], np.int64), slice(1, 4), slice(None, None, -1)],
    ids=["repeated", "none", "slice", "backwards"],
)
def test_images_come_in_the_order_of_the_indices(folder: Path, indices: np.ndarray | slice) -> None:
    np.testing.assert_array_equal(ImageDataset.open(folder, "train").images(indices), IMAGES[TRAIN][indices])


def test_an_index_out_of_range_is_an_error(folder: Path) -> None:
    with pytest.raises(IndexError):
        ImageDataset.open(folder, "train").images(np.array([5]))


def test_without_classes_there_are_no_labels(tmp_path: Path) -> None:
    assert ImageDataset.open(write(tmp_path / "prepared", [])).labels is None


def test_the_digest_tells_datasets_apart() -> None:
    other = replace(ROW, source="1", pixels="b" * 64)
    digest = dataset_digest([ROW, other], ["cat", "dog"], SHAPE)
    # Neither names nor shards, nor what is left out, are of the dataset.
    renamed = replace(ROW, source="other name", sha256="1" * 64)
    assert digest == dataset_digest([renamed, replace(other, shard=3, row=7)], ["cat", "dog"], SHAPE)
    assert digest == dataset_digest([ROW, NO_IMAGE, other, replace(ROW, split=None)], ["cat", "dog"], SHAPE)
    changed = (replace(ROW, pixels="c" * 64), replace(ROW, split="test"), replace(ROW, label=1))
    others = [
        dataset_digest([ROW, other], ["cat", "cow"], SHAPE),
        dataset_digest([other, ROW], ["cat", "dog"], SHAPE),
        dataset_digest([ROW], ["cat", "dog"], SHAPE),
        dataset_digest([ROW, other], ["cat", "dog"], (3, 2, 4)),
        *(dataset_digest([row, other], ["cat", "dog"], SHAPE) for row in changed),
    ]
    assert len({digest, *others}) == 8


@pytest.mark.parametrize("name", ["dataset.json", "manifest.parquet", "images-00000.npy", "images-00002.npy"])
def test_a_missing_file_is_told(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing: .*`dvc repro prepare`"):
        ImageDataset.open(folder)


@pytest.mark.parametrize("name", ["dataset.json", "manifest.parquet", "images-00001.npy"])
def test_a_truncated_file_is_told(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-9])
    with pytest.raises(UserError, match=rf"{name} is damaged \("):
        ImageDataset.open(folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"count": 8}, r"manifest.parquet is damaged \(its counts are not those of dataset.json\)"),
        ({"quarantined": 0}, r"manifest.parquet is damaged \(its counts"),
        ({"dropped": 0}, r"manifest.parquet is damaged \(its counts"),
        ({"train": 3, "validation": 3}, r"manifest.parquet is damaged \(its counts"),
        ({"classes": ["cat"]}, r"manifest.parquet is damaged \(it has labels that are not classes of dataset.json\)"),
        (
            {"image_size": [3, 2]},
            r"images-00000.npy is damaged \(it holds uint8 \(3, 2, 3, 4\) and not .*\(3, 2, 4\)",
        ),
        ({"image_size": 2}, r"dataset.json is damaged \(Input should be a valid array"),
        ({"channels": 1}, r"images-00000.npy is damaged \(it holds uint8"),
        ({"surprise": 1}, r"dataset.json is damaged \(Extra inputs"),
    ],
)
def test_files_that_contradict_each_other_are_told(folder: Path, change: dict, sentence: str) -> None:
    info = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(info | change))
    with pytest.raises(UserError, match=sentence):
        ImageDataset.open(folder)


def test_pixels_that_no_row_names_are_not_used(folder: Path) -> None:
    """What a run keeps of an earlier one holds images that are no longer wanted."""
    rows = rows_of(read_manifest(folder / "manifest.parquet"))
    rows = [row for row in rows if row.source != "5"]
    write_manifest(folder / "manifest.parquet", rows)
    info = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(info | {"train": 3, "count": 6}))
    np.testing.assert_array_equal(ImageDataset.open(folder).images(), np.delete(IMAGES, 5, axis=0))


@pytest.mark.parametrize("place", [{"row": 3}, {"shard": 3}, {"shard": 2**62}])
def test_a_row_that_no_shard_has_is_told(folder: Path, place: dict) -> None:
    first, *rest = rows_of(read_manifest(folder / "manifest.parquet"))
    write_manifest(folder / "manifest.parquet", [replace(first, **place), *rest])
    with pytest.raises(UserError, match=r"manifest\.parquet is damaged \(it(s shards| names rows)"):
        ImageDataset.open(folder)
