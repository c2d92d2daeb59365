"""`data/prepared` accounts for every file of `data/raw`, and is the same whenever and however it is made."""

import io
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffusion_core.config.settings import PrepareSettings
from diffusion_core.data.dataset import ImageDataset
from diffusion_core.errors import UserError
from diffusion_core.stages import prepare
from tests.data.encoded import encoded
from tests.data.packed import pack

RAW, PREPARED = Path("data/raw"), Path("data/prepared")
SETTINGS = PrepareSettings(image_size=4, color="rgb", validation_fraction=0.3)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def random_images(count: int, classes: tuple[str, ...] = ("2/", "10/"), seed: int = 0) -> dict[str, bytes]:
    """Return images of random pixels by path, in order."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 3), np.uint8)
    paths = [f"{classes[number % len(classes)]}{number:03d}.png" for number in range(count)]
    return dict(sorted(zip(paths, (encoded(Image.fromarray(image), "PNG") for image in pixels), strict=True)))


def fill(count: int, classes: tuple[str, ...] = ("2/", "10/"), **others: bytes) -> dict[str, bytes]:
    """Pack images of random pixels, and others whose names have __ for / and no suffix; return the former."""
    images = random_images(count, classes)
    pack(RAW, images | {f"{name.replace('__', '/')}.png": content for name, content in others.items()})
    return images


def manifest() -> list[dict]:
    return pq.read_table(PREPARED / "manifest.parquet").to_pylist()


def contents() -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in PREPARED.iterdir()}


def test_every_file_is_kept_or_quarantined(capsys: pytest.CaptureFixture) -> None:
    cut = random_images(1)["2/000.png"][:-30]
    images = fill(40, **{"2__empty": b"", "10__cut": cut, "stray": b"no image"})
    prepare.run(SETTINGS)
    rows, info = manifest(), ImageDataset.open(PREPARED).info
    assert [row["source"] for row in rows] == sorted([*images, "2/empty.png", "10/cut.png", "stray.png"])
    assert {row["source"] for row in rows if row["quarantined"]} == {"2/empty.png", "10/cut.png", "stray.png"}
    for row in rows:
        kept = [row[name] is not None for name in ("split", "shard", "row", "label", "pixels", "perceptual_hash")]
        assert kept == [row["quarantined"] is None] * 6
    assert (info.count, info.quarantined, info.dropped, info.test) == (40, 3, 0, 0)
    assert info.train + info.validation == info.count
    assert "left out 3 of 43 files; the column `quarantined` of data/prepared/manifest.parquet says why" in (
        capsys.readouterr().out
    )


def test_the_dataset_holds_the_images_with_the_names_of_their_folders() -> None:
    images = fill(40)
    prepare.run(SETTINGS)
    dataset = ImageDataset.open(PREPARED)
    assert dataset.info.classes == ["2", "10"]
    assert [dataset.info.classes[label] for label in dataset.labels] == [path.split("/")[0] for path in images]
    decoded = (Image.open(io.BytesIO(content)) for content in images.values())
    expected = [np.asarray(image.resize((4, 4), Image.Resampling.BICUBIC)) for image in decoded]
    np.testing.assert_array_equal(dataset.images(), expected)


def test_without_folders_there_are_no_classes() -> None:
    fill(40, classes=("",))
    prepare.run(PrepareSettings(image_size=4, color="grayscale", validation_fraction=0.3))
    dataset = ImageDataset.open(PREPARED)
    assert (dataset.info.classes, dataset.labels, dataset.images().shape) == ([], None, (40, 4, 4, 1))


def test_an_image_outside_of_the_folders_costs_the_classes_and_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    fill(40, stray=encoded(Image.new("RGB", (6, 6)), "PNG"))
    prepare.run(SETTINGS)
    assert ImageDataset.open(PREPARED).info.classes == []
    assert "the folders are not classes, as 1 images lie in none of them (stray.png)" in capsys.readouterr().out


def test_copies_of_an_image_are_in_the_same_split() -> None:
    images = random_images(40)
    pack(RAW, images | {f"copies/{number}.jpg": content for number, content in enumerate(images.values())})
    prepare.run(SETTINGS)
    splits: dict[str, set[str]] = {}
    for row in manifest():
        splits.setdefault(row["sha256"], set()).add(row["split"])
    assert len(splits) == 40
    assert all(len(split) == 1 for split in splits.values())
    assert set().union(*splits.values()) == {"train", "validation"}


@pytest.mark.parametrize("cores", [1, 2])
def test_the_same_files_make_the_same_bytes(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    fill(150, **{"2__empty": b""})
    prepare.run(SETTINGS)
    first = contents()
    shutil.rmtree(PREPARED)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    prepare.run(SETTINGS)
    assert contents() == first
    assert set(first) == {"images-00000.npy", "manifest.parquet", "dataset.json"}


def test_a_killed_run_leaves_no_process_and_no_trace_in_the_next() -> None:
    fill(40)
    prepare.run(SETTINGS)
    undisturbed = contents()
    # Files that take a while, so that the signal meets a run at work; equal files would be decoded once.
    noise = encoded(Image.fromarray(np.random.default_rng(1).integers(0, 256, (1500, 1500, 3), np.uint8)), "PNG")
    fill(40, **{f"2__slow{number}": noise + bytes([number]) for number in range(130)})
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

    fill(40)
    prepare.run(SETTINGS)
    assert contents() == undisturbed
    assert sorted(file.name for file in Path("data").iterdir()) == ["prepared", "raw"]


def test_images_that_are_nearly_black_by_their_type_are_counted(capsys: pytest.CaptureFixture) -> None:
    samples = np.random.default_rng(1).integers(100, 3400, (40, 40, 40)).astype(np.uint16)
    deep = {f"2/deep{number}.tiff": encoded(Image.fromarray(each), "TIFF") for number, each in enumerate(samples)}
    pack(RAW, random_images(20) | deep)
    prepare.run(SETTINGS)
    told = "prepare: 40 of 40 images of more than 8 bits use less than a sixteenth of their range (5.1"
    assert told in capsys.readouterr().out
    # So they are when they are not decoded again.
    prepare.run(SETTINGS)
    assert told in capsys.readouterr().out
    assert ImageDataset.open(PREPARED).images().reshape(60, -1).max(axis=1).min() < 14
    prepare.run(SETTINGS.model_copy(update={"range": "data"}))
    assert "sixteenth" not in capsys.readouterr().out
    assert ImageDataset.open(PREPARED).images().reshape(60, -1).max(axis=1).min() > 100


def no_image() -> None:
    pack(RAW, {f"{number}.png": b"no image" for number in range(5)})


def copies_of_one_image() -> None:
    (content,) = random_images(1).values()
    pack(RAW, {f"2/copy{number}.png": content for number in range(5)})


@pytest.mark.parametrize(
    ("make", "fraction", "sentence"),
    [
        (lambda: None, 0.3, "data/raw is missing: run the stage that makes it with `dvc repro ingest`"),
        (
            lambda: RAW.mkdir(parents=True),
            0.3,
            r"data/raw/index\.parquet is missing: make it with .*--single-item ingest",
        ),
        (lambda: pack(RAW, {}), 0.3, "data/raw holds no images: fill it with `dvc repro --force --single-item ingest`"),
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
    before = contents()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal_before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            prepare.run(SETTINGS.model_copy(update={"max_pixels": 10**6}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, signal_before)
    assert contents() == before
    assert not list(Path("data").glob(".*"))
