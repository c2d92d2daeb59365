"""`data/prepared` accounts for every file of `data/raw`, and is the same whenever and however it is made."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffusion_core.config.settings import PrepareSettings
from diffusion_core.data.dataset import ImageDataset
from diffusion_core.data.decode import Decoded
from diffusion_core.data.raw import RawFile
from diffusion_core.errors import UserError
from diffusion_core.stages import prepare
from tests.data.ingested import ingest, noise
from tests.data.packed import pack

RAW, PREPARED = Path("data/raw"), Path("data/prepared")
SETTINGS = PrepareSettings(image_size=4, color="rgb", validation_fraction=0.3)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The paths of the files that each run decodes."""
    decoded: list[list[str]] = []
    decode_all = prepare.decode_all

    def recorded(folder: Path, files: Sequence[RawFile], *more: object) -> Iterator[Decoded]:
        decoded.append([file.path for file in files])
        return decode_all(folder, files, *more)

    monkeypatch.setattr(prepare, "decode_all", recorded)
    return decoded


def drawn(count: int, classes: tuple[str, ...] = ("2/", "10/"), seed: int = 0) -> dict[str, bytes]:
    """Return image files of random pixels by path, in the order of the paths."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 3), np.uint8)
    return dict(
        sorted((f"{classes[number % len(classes)]}{number:03d}.png", png(image)) for number, image in enumerate(pixels))
    )


def png(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def fill(count: int, classes: tuple[str, ...] = ("2/", "10/")) -> dict[str, bytes]:
    """Put images of random pixels into data/raw and return them."""
    files = drawn(count, classes)
    pack(RAW, files)
    return files


def manifest() -> list[dict]:
    return pq.read_table(PREPARED / "manifest.parquet").to_pylist()


def contents() -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in PREPARED.iterdir()}


def test_every_file_is_kept_or_quarantined(capsys: pytest.CaptureFixture) -> None:
    files = drawn(40)
    broken = {"2/empty.png": b"", "10/cut.png": files["10/001.png"][:-30], "stray.png": b"no image"}
    pack(RAW, files | broken)
    prepare.run(SETTINGS)
    rows, info = manifest(), ImageDataset.open(PREPARED).info
    assert [row["source"] for row in rows] == sorted([*files, *broken])
    assert {row["source"] for row in rows if row["quarantined"]} == {*broken}
    for row in rows:
        kept = [row[name] is not None for name in ("split", "shard", "row", "label", "pixels", "perceptual_hash")]
        assert kept == [row["quarantined"] is None] * 6
    assert {(row["part"], row["duplicate_of"]) for row in rows} == {(0, None)}
    assert (info.count, info.quarantined) == (40, 3)
    assert info.train + info.validation == info.count
    assert "left out 3 of 43 files; plots/data.html shows why, and so does the column `quarantined` of" in (
        capsys.readouterr().out
    )


def test_the_dataset_holds_the_images_with_the_names_of_their_folders() -> None:
    files = fill(40)
    prepare.run(SETTINGS)
    dataset = ImageDataset.open(PREPARED)
    assert dataset.info.classes == ["2", "10"]
    assert [dataset.info.classes[label] for label in dataset.labels] == [path.split("/")[0] for path in files]
    expected = [
        np.asarray(Image.open(BytesIO(content)).resize((4, 4), Image.Resampling.BICUBIC)) for content in files.values()
    ]
    np.testing.assert_array_equal(dataset.images(), expected)


def test_without_folders_there_are_no_classes() -> None:
    fill(40, classes=("",))
    prepare.run(PrepareSettings(image_size=4, color="grayscale", validation_fraction=0.3))
    dataset = ImageDataset.open(PREPARED)
    assert (dataset.info.classes, dataset.labels, dataset.images().shape) == ([], None, (40, 4, 4, 1))


def test_an_image_outside_of_the_folders_costs_the_classes_and_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    files = drawn(40)
    pack(RAW, files | {"stray.png": files.pop("2/000.png")})
    prepare.run(SETTINGS)
    assert ImageDataset.open(PREPARED).info.classes == []
    assert "the folders are not classes, as 1 images lie in none of them (stray.png)" in capsys.readouterr().out


def test_copies_of_an_image_are_in_the_same_split_and_name_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    files = drawn(40)
    pack(RAW, files | {f"copies/{number}.jpg": content for number, content in enumerate(files.values())})
    prepare.run(SETTINGS)
    splits: dict[str, set[str]] = {}
    for row in manifest():
        splits.setdefault(row["sha256"], set()).add(row["split"])
        # The folder `copies` comes after `10` and `2`.
        assert (row["duplicate_of"] is None) == (not row["source"].startswith("copies"))
    assert len(splits) == 40
    assert all(len(split) == 1 for split in splits.values())
    assert set().union(*splits.values()) == {"train", "validation"}
    assert "prepare: 40 images are near-duplicates of others: kept" in capsys.readouterr().out


@pytest.mark.parametrize("cores", [1, 2])
def test_the_same_files_make_the_same_bytes(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    pack(RAW, drawn(150) | {"2/empty.png": b""})
    prepare.run(SETTINGS)
    first = contents()
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    shutil.rmtree(PREPARED)
    prepare.run(SETTINGS)
    assert contents() == first
    assert set(first) == {"images-00000.npy", "manifest.parquet", "dataset.json"}


def test_a_killed_run_leaves_no_process_and_no_trace_in_the_next() -> None:
    files = fill(40)
    prepare.run(SETTINGS)
    undisturbed = contents()
    # Files that take a while, so that the signal meets a run at work; what follows the image makes each another one.
    noise = png(np.random.default_rng(1).integers(0, 256, (1000, 1000, 3), np.uint8))
    pack(RAW, files | {f"2/slow{number}.png": noise + str(number).encode() for number in range(130)})
    script = (
        "from diffusion_core.config.settings import PrepareSettings\n"
        "from diffusion_core.stages import prepare\n"
        "prepare.run(PrepareSettings(image_size=4, color='rgb', validation_fraction=0.3))\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(Path(prepare.__file__).parents[2])}
    )
    process = psutil.Process(run.pid)
    deadline = time.monotonic() + 60
    while not (workers := process.children()) and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert workers
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    assert contents() == undisturbed
    assert len(list(Path("data").glob(".prepared.tmp-*"))) == 1

    pack(RAW, files)
    prepare.run(SETTINGS)
    assert contents() == undisturbed
    assert sorted(file.name for file in Path("data").iterdir()) == ["prepared", "raw"]


def test_images_that_are_nearly_black_by_their_type_are_counted(capsys: pytest.CaptureFixture) -> None:
    random = np.random.default_rng(1)
    deep = {
        f"2/deep{number}.tiff": png(random.integers(100, 3400, (40, 40)).astype(np.uint16), "TIFF")
        for number in range(40)
    }
    pack(RAW, drawn(20) | deep)
    prepare.run(SETTINGS)
    told = "prepare: 40 of 40 images of more than 8 bits use less than a sixteenth of their range (5.1"
    assert told in capsys.readouterr().out
    # Also where nothing is decoded.
    prepare.run(SETTINGS)
    assert told in capsys.readouterr().out
    assert ImageDataset.open(PREPARED).images().reshape(60, -1).max(axis=1).min() < 14
    prepare.run(SETTINGS.model_copy(update={"range": "data"}))
    assert "sixteenth" not in capsys.readouterr().out
    assert ImageDataset.open(PREPARED).images().reshape(60, -1).max(axis=1).min() > 100


def no_files() -> None:
    pack(RAW, {})


def no_image() -> None:
    pack(RAW, {f"{number}.png": b"no image" + bytes([number]) for number in range(5)})


def copies_of_one_image() -> None:
    ((path, content),) = drawn(1).items()
    pack(RAW, {path: content, **{f"2/copy{number}.png": content for number in range(4)}})


def no_index() -> None:
    RAW.mkdir(parents=True)
    (RAW / "1.png").write_bytes(b"as before the packs")


@pytest.mark.parametrize(
    ("make", "fraction", "sentence"),
    [
        (lambda: None, 0.3, "data/raw is missing: run the stage that makes it with `dvc repro ingest`"),
        (no_index, 0.3, "data/raw/index.parquet is missing: make it with `dvc repro --force --single-item ingest`"),
        (no_files, 0.3, "data/raw holds no images: fill it with `dvc repro --force --single-item ingest`"),
        (no_image, 0.3, r"prepare: none of the 5 files in data/raw .*\(0.png: not one of AVIF.*2.png: not one of"),
        (lambda: fill(20), 1e-9, "prepare.validation_fraction is 1e-09, .* validation split of 20 images: raise it"),
        (copies_of_one_image, 0.999, "prepare.validation_fraction is 0.999, .* train split of 5 images: lower it"),
    ],
    ids=["no folder", "no index", "no files", "no image", "no validation", "no training"],
)
def test_what_makes_no_dataset_is_told_and_changes_nothing(make, fraction: float, sentence: str) -> None:
    PREPARED.mkdir(parents=True)
    (PREPARED / "old").write_bytes(b"1")
    make()
    with pytest.raises(UserError, match=sentence):
        prepare.run(PrepareSettings(image_size=4, color="rgb", validation_fraction=fraction))
    assert contents() == {"old": b"1"}
    assert not list(Path("data").glob(".*"))


def test_a_full_disk_leaves_what_was_there() -> None:
    fill(40)
    prepare.run(SETTINGS)
    # Else its shard would be linked.
    (PREPARED / "dataset.json").write_bytes(b"damaged")
    before = contents()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal_before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            prepare.run(SETTINGS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, signal_before)
    assert contents() == before
    assert not list(Path("data").glob(".*"))


def told() -> tuple[str, list, list, list]:
    """Return what a training sees of the dataset: digest, images, labels and splits."""
    dataset = ImageDataset.open(PREPARED)
    splits = [row["split"] for row in manifest() if row["split"]]
    assert dataset.labels is not None
    return dataset.info.digest, dataset.images().tolist(), dataset.labels.tolist(), splits


def from_nothing(settings: PrepareSettings = SETTINGS) -> tuple[str, list, list, list]:
    shutil.rmtree(PREPARED)
    prepare.run(settings)
    return told()


def changed(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return the files without some, with new ones before and behind, one of a new class, and one that is other."""
    kept = {path: content for number, (path, content) in enumerate(files.items()) if number % 5 != 3}
    return kept | drawn(7, ("1/", "2/zz"), seed=1) | {"2/000.png": png(np.zeros((5, 9, 3), np.uint8))}


@pytest.mark.parametrize("duplicates", ["keep", "drop"])
@pytest.mark.parametrize("small", [False, True], ids=["shards stay", "shards are joined"])
def test_after_a_change_the_dataset_is_that_of_a_run_from_nothing(
    monkeypatch: pytest.MonkeyPatch, decoded: list[list[str]], duplicates: str, small: bool
) -> None:
    settings = SETTINGS.model_copy(update={"duplicates": duplicates})
    if not small:
        monkeypatch.setattr("diffusion_core.data.earlier.images_per_shard", lambda shape: 1)
    files = drawn(40)
    # Copies of images that stay, that go, and of one that will be another.
    files |= {f"copies/{path.replace('/', '-')}": files[path] for path in ("10/001.png", "10/007.png", "2/000.png")}
    pack(RAW, files)
    prepare.run(settings)
    before = told()
    shards = {file.name: file.stat().st_ino for file in PREPARED.glob("*.npy")}
    now = changed(files)
    pack(RAW, now)
    prepare.run(settings)
    new = told()
    assert decoded[1] == sorted(path for path in now if now[path] not in files.values())
    assert 0 < len(decoded[1]) < 10
    assert {file.name: file.stat().st_ino for file in PREPARED.glob("*.npy")}.items() >= (
        set() if small else shards.items()
    )
    assert len([*PREPARED.glob("*.npy")]) == (1 if small else 2)
    assert new == from_nothing(settings)
    assert len(decoded[2]) == len({*now.values()})
    # The control: the change is one.
    assert new[0] != before[0]


def test_an_image_that_only_moved_is_not_decoded_and_has_its_new_class(decoded: list[list[str]]) -> None:
    files = fill(40)
    prepare.run(SETTINGS)
    pack(RAW, files | {"10/moved.png": files.pop("2/000.png")})
    prepare.run(SETTINGS)
    new = told()
    assert decoded[1] == []
    assert [row["label"] for row in manifest() if row["source"] == "10/moved.png"] == [1]
    assert new == from_nothing()


def test_a_rerun_with_nothing_new_decodes_nothing_and_makes_the_same_bytes(decoded: list[list[str]]) -> None:
    files = fill(150)
    prepare.run(SETTINGS)
    first, inode = contents(), (PREPARED / "images-00000.npy").stat().st_ino
    prepare.run(SETTINGS)
    assert [len(paths) for paths in decoded] == [len(files), 0]
    assert contents() == first
    assert (PREPARED / "images-00000.npy").stat().st_ino == inode


def test_where_shards_cannot_be_linked_they_are_copied(
    monkeypatch: pytest.MonkeyPatch, decoded: list[list[str]]
) -> None:
    def link(*_: object) -> None:
        raise OSError("another file system")

    fill(40)
    prepare.run(SETTINGS)
    first = contents()
    monkeypatch.setattr(os, "link", link)
    prepare.run(SETTINGS)
    assert decoded[1] == []
    assert contents() == first


@pytest.mark.parametrize(
    "update",
    [
        {"image_size": 5},
        {"color": "grayscale"},
        {"linear_light": True},
        {"range": "data"},
        {"min_size": 2},
        {"max_pixels": 1000},
    ],
    ids=lambda update: next(iter(update)),
)
def test_another_setting_of_decoding_decodes_everything_again(decoded: list[list[str]], update: dict) -> None:
    files = fill(40)
    prepare.run(SETTINGS)
    prepare.run(SETTINGS.model_copy(update=update))
    new = told()
    assert [len(paths) for paths in decoded] == [len(files)] * 2
    assert new == from_nothing(SETTINGS.model_copy(update=update))


@pytest.mark.parametrize(
    "update",
    [{"validation_fraction": 0.6}, {"duplicates": "drop"}, {"duplicate_distance": 0.0}, {"first_folder": "split"}],
    ids=lambda update: next(iter(update)),
)
def test_a_setting_of_splits_or_labels_decodes_nothing_again(decoded: list[list[str]], update: dict) -> None:
    """The control of the test above."""
    files = drawn(40, ("train/a/", "train/b/"))
    pack(RAW, files | {"train/a/copy.png": files["train/a/000.png"]})
    prepare.run(SETTINGS)
    prepare.run(SETTINGS.model_copy(update=update))
    new = told()
    assert decoded[1] == []
    assert new == from_nothing(SETTINGS.model_copy(update=update))


@pytest.mark.parametrize("change", ["code", "libraries"])
def test_another_version_of_code_or_libraries_decodes_everything_again(
    monkeypatch: pytest.MonkeyPatch, decoded: list[list[str]], change: str
) -> None:
    files = fill(40)
    prepare.run(SETTINGS)
    if change == "code":
        monkeypatch.setattr(prepare, "code_files", lambda *names: {"data/decode.py": "other"})
    else:
        monkeypatch.setattr(prepare, "version", lambda name: "0.1")
    prepare.run(SETTINGS)
    assert [len(paths) for paths in decoded] == [len(files)] * 2


@pytest.mark.parametrize("damage", ["flipped", "empty", "missing"])
def test_a_damaged_shard_is_decoded_again(
    monkeypatch: pytest.MonkeyPatch, decoded: list[list[str]], damage: str
) -> None:
    monkeypatch.setattr("diffusion_core.data.earlier.images_per_shard", lambda shape: 1)
    files = fill(40)
    prepare.run(SETTINGS)
    new = drawn(6, ("2/new",), seed=1)
    pack(RAW, files | new)
    prepare.run(SETTINGS)
    whole = told()
    shard = PREPARED / "images-00001.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.unlink()
    if damage != "missing":
        shard.write_bytes(content if damage == "flipped" else b"")
    prepare.run(SETTINGS)
    # Those of the other shard are not.
    assert decoded[1:] == [[*new]] * 2
    assert told() == whole


@pytest.mark.parametrize("name", ["dataset.json", "manifest.parquet"])
@pytest.mark.parametrize("damage", [b"", b"{}", None])
def test_a_damaged_description_of_the_last_dataset_is_none(
    decoded: list[list[str]], name: str, damage: bytes | None
) -> None:
    files = fill(40)
    prepare.run(SETTINGS)
    first = contents()
    (PREPARED / name).unlink()
    if damage is not None:
        (PREPARED / name).write_bytes(damage)
    prepare.run(SETTINGS)
    assert [len(paths) for paths in decoded] == [len(files)] * 2
    assert contents() == first


def test_quarantined_files_are_tried_again(decoded: list[list[str]]) -> None:
    """What made a decoder fail may have been of that day, as a time limit on a busy machine."""
    files = drawn(40) | {"2/empty.png": b"", "10/text.png": b"no image"}
    pack(RAW, files)
    prepare.run(SETTINGS)
    first = contents()
    prepare.run(SETTINGS)
    assert decoded[1] == ["10/text.png", "2/empty.png"]
    assert contents() == first


def test_the_split_of_an_image_is_that_of_its_pixels() -> None:
    """Whatever its name, the bytes of its file and the other images."""
    files = fill(40)
    prepare.run(SETTINGS)
    first = {row["pixels"]: row["split"] for row in manifest()}
    more = drawn(20, ("2/more",), seed=2)
    pack(RAW, more | {f"10/{number}.png": content + b"1" for number, content in enumerate(files.values())})
    prepare.run(SETTINGS)
    assert {row["pixels"]: row["split"] for row in manifest()}.items() > first.items()
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
    assert "1 images of validation or test have near-duplicates to train on" in told
    assert "1 images are near-duplicates of others: kept, in the splits that the source names" in told
    prepare.run(SETTINGS.model_copy(update={"duplicates": "drop"}))
    told = capsys.readouterr().out
    assert "to train on" not in told
    assert "1 images are near-duplicates of others: left out" in told
