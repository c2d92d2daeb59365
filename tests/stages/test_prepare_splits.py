"""Splits and near-duplicates of a dataset."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from diffusion_core.config.settings import PrepareSettings
from diffusion_core.data.dataset import ImageDataset
from diffusion_core.data.manifest import ManifestRow, read_manifest, rows_of
from diffusion_core.errors import UserError
from diffusion_core.stages import prepare
from tests.data.encoded import encoded
from tests.data.ingested import ingest, noise
from tests.data.packed import pack

RAW, PREPARED = Path("data/raw"), Path("data/prepared")
SETTINGS = PrepareSettings(image_size=4, color="rgb", validation_fraction=0.3)
LARGER = SETTINGS.model_copy(update={"image_size": (16, 16), "duplicate_distance": 0.4})


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rows() -> dict[str, ManifestRow]:
    return {row.source: row for row in rows_of(read_manifest(PREPARED / "manifest.parquet"))}


def named(count: int, seed: int = 0) -> dict[str, bytes]:
    """Images of noise by path, without folders."""
    return {f"{seed}-{number:03d}.png": image for number, image in enumerate(noise(count, seed))}


def test_an_image_keeps_its_split_when_others_come_and_go():
    old = named(200)
    pack(RAW, old)
    prepare.run(SETTINGS)
    before = rows()
    pack(RAW, dict(list(old.items())[::2]) | named(100, seed=1))
    prepare.run(SETTINGS)
    after = rows()
    assert {row.split for row in before.values()} == {"train", "validation"}
    kept = before.keys() & after.keys()
    assert len(kept) == 100
    assert all(after[path].split == before[path].split for path in kept)


def photograph(number):
    """A soft picture of 48 x 48 pixels."""
    pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), np.uint8)
    return Image.fromarray(pixels).resize((48, 48), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1))


def with_copies(numbers):
    """Photographs, and each of them again as JPEG, WebP and half as large."""
    images = {}
    for number in numbers:
        image = photograph(number)
        images |= {
            f"a/{number:03d}.png": encoded(image, "PNG"),
            f"b/{number:03d}.jpg": encoded(image, "JPEG", quality=75),
            f"c/{number:03d}.webp": encoded(image, "WEBP"),
            f"d/{number:03d}.png": encoded(image.resize((24, 24)), "PNG"),
        }
    return images


def test_near_duplicates_are_in_one_split_and_name_the_first_of_them(capsys):
    pack(RAW, with_copies(range(60)))
    prepare.run(LARGER)
    found = rows()
    assert {path: row.duplicate_of for path, row in found.items()} == {
        path: None if path[0] == "a" else f"a/{path[2:5]}.png" for path in found
    }
    assert all(row.split == found[f"a/{path[2:5]}.png"].split for path, row in found.items())
    assert "prepare: near-duplicates of other images: 180; they are kept in the split of the first of each" in (
        capsys.readouterr().out
    )


def test_they_are_dropped_where_that_is_asked_for_and_come_back_without_decoding(monkeypatch, capsys):
    def nothing(folder, files, wanted):
        assert files == []
        return iter(())

    pack(RAW, with_copies(range(30)))
    prepare.run(LARGER)
    before = rows()
    monkeypatch.setattr(prepare, "decode_all", nothing)
    prepare.run(LARGER.model_copy(update={"duplicates": "drop"}))
    assert "prepare: near-duplicates of other images: 90; they are left out" in capsys.readouterr().out
    dropped = ImageDataset.open(PREPARED)
    assert (dropped.info.count, dropped.info.dropped, dropped.info.quarantined) == (30, 90, 0)
    assert dropped.sources(np.arange(30)) == [f"a/{number:03d}.png" for number in range(30)]
    prepare.run(LARGER)
    assert rows() == before


def in_splits(**numbers):
    return {
        f"{split}/{('cat', 'dog')[number % 2]}/{number:03d}.png": encoded(photograph(number), "PNG")
        for split, each in numbers.items()
        for number in each
    }


def test_a_training_has_nothing_of_the_splits_that_the_source_keeps_from_it(capsys):
    pack(RAW, in_splits(train=range(40), valid=range(100, 110), test=range(200, 220)))
    prepare.run(LARGER)
    opened = {split: ImageDataset.open(PREPARED, split) for split in ("train", "validation", "test")}
    assert opened["train"].info.classes == ["cat", "dog"]
    assert [len(each) for each in opened.values()] == [40, 10, 20]
    sources = {split: each.sources(np.arange(len(each))) for split, each in opened.items()}
    folders = {split: {path.split("/")[0] for path in paths} for split, paths in sources.items()}
    assert folders == {"train": {"train"}, "validation": {"valid"}, "test": {"test"}}
    pixels = {split: {each.tobytes() for each in opened[split].images()} for split in opened}
    assert not pixels["train"] & (pixels["validation"] | pixels["test"])
    assert "prepare: 40 images to train, 10 to validate, 20 to test, 2 classes\n" in capsys.readouterr().out


def test_what_leaks_from_one_to_the_other_is_counted(capsys):
    images = in_splits(train=range(40), valid=range(100, 110))
    leaked = {"valid/cat/leaked.jpg": encoded(photograph(4), "JPEG", quality=80)}
    pack(RAW, images | leaked)
    prepare.run(LARGER)
    assert "prepare: images of validation or test with near-duplicates to train on: 1" in capsys.readouterr().out


def test_a_test_split_alone_leaves_the_others_to_the_fraction():
    pack(RAW, in_splits(train=range(200), test=range(300, 320)))
    prepare.run(LARGER)
    info = ImageDataset.open(PREPARED).info
    assert (info.test, info.train + info.validation) == (20, 200)
    assert 30 < info.validation < 90


def test_a_table_names_the_classes():
    images = in_splits(train=range(20), val=range(100, 110))
    labels = {path: "odd" if int(path[-7:-4]) % 2 else "even" for path in images}
    pack(RAW, images, labels=labels)
    prepare.run(LARGER)
    opened = ImageDataset.open(PREPARED)
    assert opened.info.classes == ["even", "odd"]
    assert [opened.info.classes[each] for each in opened.labels] == [labels[path] for path in sorted(images)]


def test_the_split_of_an_image_is_that_of_its_pixels():
    """Whatever its name, the bytes of its file and the other images."""
    files = named(40)
    pack(RAW, files)
    prepare.run(SETTINGS)
    first = {row.pixels: row.split for row in rows().values()}
    pack(RAW, named(20, seed=2) | {f"x{number}.png": content + b"1" for number, content in enumerate(files.values())})
    prepare.run(SETTINGS)
    assert {row.pixels: row.split for row in rows().values()}.items() > first.items()
    assert first == {pixels: "validation" if int(pixels[:16], 16) / 2**64 < 0.3 else "train" for pixels in first}


def test_validation_of_the_source_that_does_not_decode_is_not_replaced_in_silence():
    images = {f"train/{number}.png": image for number, image in enumerate(noise(20))}
    ingest(images | {"val/1.png": b"no image", "val/2.png": b""})
    with pytest.raises(
        UserError, match=r"is left to the validation split \(it has lost 2 files, as val/1.png: not one of .*\): add"
    ):
        prepare.run(SETTINGS)
    # The control: without them the images are parted by the fraction.
    ingest(images)
    prepare.run(SETTINGS)


def test_a_source_that_names_validation_alone_is_told():
    ingest({f"val/{number}.png": image for number, image in enumerate(noise(20))})
    with pytest.raises(UserError, match="and none is left to the train split: add images to it, or name no splits"):
        prepare.run(SETTINGS.model_copy(update={"first_folder": "split"}))


def test_validation_that_is_dropped_is_not_replaced_in_silence():
    images = {f"train/{number}.png": image for number, image in enumerate(noise(20))}
    ingest(images | {"val/1.png": images["train/0.png"]})
    with pytest.raises(UserError, match="none is left to the validation split: add images to it"):
        prepare.run(SETTINGS.model_copy(update={"duplicates": "drop"}))


def test_copies_across_the_splits_of_the_source_are_told(capsys):
    images = {f"train/{number}.png": image for number, image in enumerate(noise(20))}
    images |= {f"val/{number}.png": image for number, image in enumerate(noise(5, seed=1))}
    ingest(images | {"val/copy.png": images["train/0.png"]})
    prepare.run(SETTINGS)
    told = capsys.readouterr().out
    assert "images of validation or test with near-duplicates to train on: 1" in told
    assert "near-duplicates of other images: 1; they are kept in the splits that the source names" in told
    prepare.run(SETTINGS.model_copy(update={"duplicates": "drop"}))
    told = capsys.readouterr().out
    assert "to train on" not in told
    assert "near-duplicates of other images: 1; they are left out" in told
