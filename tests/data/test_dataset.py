"""The dataset returns the images that were written, and refuses files that do not belong together."""

import json
from pathlib import Path

import numpy as np
import pytest

from diffusion_core.data.dataset import DatasetInfo, ImageDataset, dataset_digest
from diffusion_core.data.manifest import ManifestRow, write_manifest
from diffusion_core.data.shards import ShardWriter
from diffusion_core.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 2, 3, 4), np.uint8)
SPLITS = ["train", "validation", "train", "train", "validation", "train", "train"]
LABELS = [0, 1, 1, 0, 0, 1, 1]
TRAIN = [0, 2, 3, 5, 6]


def write(folder: Path, classes: list[str]) -> Path:
    """Seven images in shards of three, and a file between them that was quarantined."""
    folder.mkdir()
    writer = ShardWriter(folder, (2, 3, 4), shard_bytes=3 * 24)
    rows = []
    for number, image in enumerate(IMAGES):
        label = LABELS[number] if classes else None
        rows.append(
            ManifestRow(f"{number}", "0" * 64, label, SPLITS[number], *writer.append(image), 3, 2, "RGBA", None)
        )
    rows.insert(4, ManifestRow("bad", "0" * 64, None, None, None, None, None, None, None, "the file is empty"))
    writer.flush()
    write_manifest(folder / "manifest.parquet", rows)
    info = DatasetInfo(
        count=7,
        train=5,
        validation=2,
        quarantined=1,
        classes=classes,
        image_size=(2, 3),
        channels=4,
        shards=writer.digests,
        digest=dataset_digest(writer.digests, rows, classes),
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
    assert ImageDataset.open(folder, "train").class_counts == (2, 3)


def test_a_split_has_its_images_only(folder: Path) -> None:
    train, validation = ImageDataset.open(folder, "train"), ImageDataset.open(folder, "validation")
    assert (len(train), len(validation)) == (train.info.train, train.info.validation) == (5, 2)
    np.testing.assert_array_equal(train.images(), IMAGES[TRAIN])
    np.testing.assert_array_equal(train.labels, np.take(LABELS, TRAIN))
    np.testing.assert_array_equal(validation.images(), IMAGES[[1, 4]])


@pytest.mark.parametrize(
    "indices",
    [np.array([4, 0, 4, -1]), np.array([], np.int64), slice(1, 4), slice(None, None, -1)],
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
    row = ManifestRow("0", "0" * 64, 0, "train", 0, 0, 2, 2, "RGB", None)
    moved = ManifestRow("0", "0" * 64, 0, "validation", 0, 0, 2, 2, "RGB", None)
    relabelled = ManifestRow("0", "0" * 64, 1, "train", 0, 0, 2, 2, "RGB", None)
    renamed = ManifestRow("other name", "0" * 64, 0, "train", 0, 0, 2, 2, "RGB", None)
    digest = dataset_digest(["a"], [row], ["cat", "dog"])
    assert digest == dataset_digest(["a"], [renamed], ["cat", "dog"])
    others = [
        dataset_digest(["b"], [row], ["cat", "dog"]),
        dataset_digest(["a"], [moved], ["cat", "dog"]),
        dataset_digest(["a"], [relabelled], ["cat", "dog"]),
        dataset_digest(["a"], [row], ["cat", "cow"]),
    ]
    assert len({digest, *others}) == 5


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
        ({"train": 4, "validation": 3}, r"manifest.parquet is damaged \(its counts"),
        ({"classes": ["cat"]}, r"manifest.parquet is damaged \(it has labels that are not classes of dataset.json\)"),
        (
            {"image_size": [3, 2]},
            r"images-00000.npy is damaged \(it holds uint8 \(3, 2, 3, 4\) and not .*\(3, 3, 2, 4\)",
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
