"""A run after others makes the dataset that a run from nothing makes, and decodes only what it must."""

import json
import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_core.config.settings import PrepareSettings
from diffusion_core.data import shards, workers
from diffusion_core.data.dataset import ImageDataset
from diffusion_core.data.decode import Decoded, decode
from diffusion_core.data.manifest import read_manifest, rows_of
from diffusion_core.stages import prepare
from tests.data.encoded import encoded
from tests.data.packed import pack

RAW, PREPARED = Path("data/raw"), Path("data/prepared")
SETTINGS = PrepareSettings(image_size=4, color="rgb", validation_fraction=0.3)
PER_SHARD = 50


@pytest.fixture(autouse=True)
def _project(tmp_path, monkeypatch):
    """A new working directory, and shards of 50 images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shards.images_per_shard, "__defaults__", (PER_SHARD * 48,))
    monkeypatch.setitem(shards.ShardWriter.__init__.__kwdefaults__, "shard_bytes", PER_SHARD * 48)


@pytest.fixture
def again(monkeypatch, capsys):
    """Run prepare; return the paths of the files that it decoded."""
    original = prepare.decode_all

    def again(settings=SETTINGS):
        decoded = []

        def counting(folder, files, wanted):
            decoded.extend(file.path for file in files)
            return original(folder, files, wanted, workers=1)

        with monkeypatch.context() as patch:
            patch.setattr(prepare, "decode_all", counting)
            prepare.run(settings)
        return decoded

    return again


def noise(number):
    pixels = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(pixels)


def some(numbers, folder="cat"):
    """Images of noise by path, in two folders; the same number is the same image."""
    return {f"{folder if number % 3 else 'dog'}/{number:04d}.png": encoded(noise(number), "PNG") for number in numbers}


def fill(*parts):
    images = {}
    for part in parts:
        images |= part
    pack(RAW, dict(sorted(images.items())))


def dataset():
    """All that a dataset is, but for its shards."""
    opened = ImageDataset.open(PREPARED)
    rows = [{**vars(row), "shard": None, "row": None} for row in rows_of(read_manifest(PREPARED / "manifest.parquet"))]
    info = opened.info.model_dump(exclude={"shards"})
    return info, rows, opened.images().tolist(), [] if opened.labels is None else opened.labels.tolist()


def files():
    return {file.name: (file.stat().st_ino, file.read_bytes()) for file in PREPARED.glob("*.npy")}


def from_nothing(again, settings=SETTINGS):
    """What a run without an earlier dataset makes; the earlier one stays."""
    shutil.move(PREPARED, "earlier")
    again(settings)
    made = dataset(), files()
    shutil.rmtree(PREPARED)
    shutil.move("earlier", PREPARED)
    return made


# Of the first, one copy by bytes, one by pixels and one by eye; and two files that are no images.
ODD = {
    "dog/copy.png": encoded(noise(0), "PNG"),
    "dog/pixels.bmp": encoded(noise(0), "BMP"),
    "cat/alike.png": encoded(Image.fromarray(np.asarray(noise(0)) // 2 * 2), "PNG"),
    "cat/empty.png": b"",
    "dog/text.png": b"no image",
}


def test_after_adding_and_removing_the_dataset_is_that_of_a_run_from_nothing(again):
    fill(some(range(400)), ODD)
    assert len(again()) == 400 + len(ODD) - 1
    before = files()
    gone = {*range(10, 60, 3), 399}
    new = {**some(range(1000, 1004)), "cat/renamed.png": encoded(noise(7), "PNG")}
    fill(some(number for number in range(400) if number not in gone), ODD, new)
    # The renamed one has known bytes; what was quarantined is tried again.
    assert sorted(again()) == sorted([*some(range(1000, 1004)), "cat/empty.png", "dog/text.png"])
    made, shards_made = dataset(), files()
    expected, shards_expected = from_nothing(again)
    assert made == expected
    # The control: the shards are others, and most of them are those of before.
    assert {content for _, content in shards_made.values()} != {content for _, content in shards_expected.values()}
    assert len({*before.values()} & {*shards_made.values()}) >= len(before) - 2


@pytest.mark.parametrize("seed", range(3))
def test_so_it_is_after_many_runs(again, seed):
    random = np.random.default_rng(seed)
    known, here = set(), {*range(150)}
    for _ in range(8):
        gone = random.choice([*here], random.integers(0, 40), replace=False).tolist()
        new = random.integers(0, 400, random.integers(0, 40)).tolist()
        fill(some(here), ODD)
        decoded = again()
        assert {*decoded} <= {*some(here - known), *ODD}
        assert dataset() == from_nothing(again)[0]
        # Half of what lies there is used, but for the last shard.
        lie = sum(len(np.load(file)) for file in PREPARED.glob("*.npy"))
        assert lie <= 2 * ImageDataset.open(PREPARED).info.count
        known, here = here, here.difference(gone) | {*new}


def test_with_nothing_new_nothing_is_decoded_and_no_byte_changes(again):
    fill(some(range(120)))
    again()
    before = {file.name: file.read_bytes() for file in PREPARED.iterdir()}
    inodes = files()
    assert again() == []
    assert {file.name: file.read_bytes() for file in PREPARED.iterdir()} == before
    assert files() == inodes


def test_shards_that_do_not_change_keep_inode_and_bytes(again):
    fill(some(range(120)))
    again()
    before = files()
    fill(some(range(120)), some([1000]))
    assert len(again()) == 1
    after = files()
    assert len(before) == 3
    assert before.items() <= after.items()
    assert len(after) == 4
    # The new one is small, so it is joined with what comes next.
    fill(some(range(120)), some([1000, 1001]))
    assert len(again()) == 1
    assert before.items() <= files().items()
    assert len(files()) == 4


def test_where_nothing_can_be_linked_shards_are_copied(again, monkeypatch):
    def link(*_):
        raise OSError("another file system")

    fill(some(range(120)))
    again()
    before = dataset()
    monkeypatch.setattr("os.link", link)
    assert again() == []
    assert dataset() == before


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": (5, 4)},
        {"color": "rgba"},
        {"range": "data"},
        {"color_profile": "ignore"},
        {"max_pixels": 10**6},
        {"max_seconds": 5.0},
    ],
    ids=str,
)
def test_with_another_setting_of_the_decoder_all_is_decoded_again(again, change):
    fill(some(range(60)))
    again()
    settings = PrepareSettings(**{**SETTINGS.model_dump(), **change})
    assert len(again(settings)) == 60
    assert again(settings) == []


@pytest.mark.parametrize(
    "change",
    [
        {"validation_fraction": 0.5},
        {"first_folder": "class"},
        {"duplicates": "drop"},
        {"duplicate_distance": 0.2},
    ],
    ids=str,
)
def test_with_another_setting_of_anything_else_nothing_is(again, change):
    fill(some(range(60)), {"cat/copy.png": encoded(noise(0), "BMP")})
    again()
    settings = PrepareSettings(**{**SETTINGS.model_dump(), **change})
    assert again(settings) == []
    assert dataset() == from_nothing(again, settings)[0]


@pytest.mark.parametrize("changed", ["version", "code_files"])
def test_with_another_library_or_code_all_is_decoded_again(again, monkeypatch, changed):
    fill(some(range(60)))
    again()
    monkeypatch.setattr(prepare, changed, lambda *_: "another")
    assert len(again()) == 60


def test_without_the_digest_of_the_decoder_old_pixels_would_stay(again, monkeypatch):
    """The control."""
    deep = np.random.default_rng(0).integers(0, 4000, (60, 6, 6)).astype(np.uint16)
    fill({f"{number}.png": encoded(Image.fromarray(each), "PNG") for number, each in enumerate(deep)})
    monkeypatch.setattr(prepare, "_decoder", lambda wanted: "the same")
    again()
    settings = SETTINGS.model_copy(update={"range": "data"})
    assert again(settings) == []
    assert dataset() != from_nothing(again, settings)[0]


def flip(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.unlink()
    file.write_bytes(content)


@pytest.mark.parametrize("spoil", [flip, Path.unlink, lambda file: file.write_bytes(b"")])
def test_a_damaged_shard_is_decoded_again(again, spoil):
    fill(some(range(120)))
    again()
    before, places = dataset(), rows_of(read_manifest(PREPARED / "manifest.parquet"))
    spoil(PREPARED / "images-00001.npy")
    assert sorted(again()) == sorted(row.source for row in places if row.shard == 1)
    assert dataset() == before


def test_without_a_look_at_the_shards_damage_would_stay(again, monkeypatch):
    """The control."""
    fill(some(range(120)))
    again()
    before = dataset()
    flip(PREPARED / "images-00001.npy")
    monkeypatch.setattr("diffusion_core.data.earlier.check_shard", lambda *_: None)
    assert again() == []
    monkeypatch.setattr("diffusion_core.data.dataset.check_shard", lambda *_: None)
    assert dataset() != before


@pytest.mark.parametrize("name", ["manifest.parquet", "dataset.json"])
@pytest.mark.parametrize("content", [None, b"", b"damaged", b"[]"])
def test_with_a_damaged_description_all_is_decoded_again(again, name, content):
    fill(some(range(60)))
    again()
    before = dataset()
    (PREPARED / name).unlink()
    if content is not None:
        (PREPARED / name).write_bytes(content)
    assert len(again()) == 60
    assert dataset() == before


@pytest.mark.parametrize(
    "forged", [{"image_size": [0, 0]}, {"image_size": [2**62, 2**62]}, {"channels": 0}, {"shards": ["0" * 64] * 3}]
)
def test_a_description_that_lies_harms_nothing(again, forged):
    fill(some(range(60)))
    again()
    before = dataset()
    info = json.loads((PREPARED / "dataset.json").read_text())
    (PREPARED / "dataset.json").write_text(json.dumps(info | forged))
    again()
    assert dataset() == before


def killed_by_the_large_one(content, wanted):
    decoded = decode(content, wanted)
    return Decoded(reason="its decoder dies") if decoded.width == 90 else decoded


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="processes would decode it")
def test_what_was_quarantined_is_tried_again(again, monkeypatch):
    fill(some(range(20)), {"cat/large.png": encoded(noise(99).resize((90, 90)), "PNG"), "cat/text.png": b"no image"})
    with monkeypatch.context() as patch:
        patch.setattr(workers, "decode", killed_by_the_large_one)
        again()
    assert sorted(again()) == ["cat/large.png", "cat/text.png"]
    assert dataset() == from_nothing(again)[0]
