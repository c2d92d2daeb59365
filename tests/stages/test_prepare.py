"""`data/prepared` accounts for every file of `data/raw`, and is the same whenever and however it is made."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from io import BytesIO
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
from tests.data.packed import pack

RAW, PREPARED = Path("data/raw"), Path("data/prepared")
SETTINGS = PrepareSettings(image_size=4, color="rgb", validation_fraction=0.3)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


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


def test_a_class_that_vanished_is_told_and_the_dataset_stays() -> None:
    images = fill(40)
    prepare.run(SETTINGS)
    before = contents()
    pack(RAW, {path: b"no image" if path.startswith("2/") else content for path, content in images.items()})
    with pytest.raises(UserError, match=r"no file of the classes 2 \(20 files\) decodes"):
        prepare.run(SETTINGS)
    assert contents() == before


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
    assert "prepare: near-duplicates of other images: 40; they are kept" in capsys.readouterr().out


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
