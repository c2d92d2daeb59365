"""What goes into the shards comes out of them."""

import ctypes
import hashlib
import mmap
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from diffusion_core.data.shards import ShardWriter, map_shard, read_ahead, shard_file
from diffusion_core.errors import UserError
from tests.faults.commands import wait_for

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), np.uint8)


def write(folder: Path, shard_bytes: int) -> tuple[list[tuple[int, int]], list[str]]:
    folder.mkdir()
    writer = ShardWriter(folder, (4, 4, 3), shard_bytes=shard_bytes)
    places = [writer.append(image) for image in IMAGES]
    writer.flush()
    return places, writer.digests


def test_every_image_is_where_the_writer_said(tmp_path: Path) -> None:
    places, digests = write(tmp_path / "shards", shard_bytes=4 * 48 + 47)
    shards = [map_shard(tmp_path / "shards", number, (4, 4, 3)) for number in range(3)]
    assert [len(shard) for shard in shards] == [4, 4, 2]
    np.testing.assert_array_equal([shards[shard][row] for shard, row in places], IMAGES)
    files = sorted((tmp_path / "shards").iterdir())
    assert [file.name for file in files] == ["images-00000.npy", "images-00001.npy", "images-00002.npy"]
    assert digests == [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def test_the_last_shard_may_be_full(tmp_path: Path) -> None:
    _, digests = write(tmp_path / "shards", shard_bytes=5 * 48)
    assert len(digests) == len(list((tmp_path / "shards").iterdir())) == 2


def test_an_image_larger_than_a_shard_has_one_of_its_own(tmp_path: Path) -> None:
    places, _ = write(tmp_path / "shards", shard_bytes=1)
    assert places == [(number, 0) for number in range(10)]


def test_equal_images_make_equal_files(tmp_path: Path) -> None:
    assert write(tmp_path / "one", 200) == write(tmp_path / "two", 200)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda file: file.unlink(), "is missing: run the stage that makes it with `dvc repro prepare`"),
        (lambda file: file.write_bytes(b""), "is damaged"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "is damaged"),
        (lambda file: np.save(file, IMAGES[:, :3]), r"it holds uint8 \(10, 3, 4, 3\) and not uint8 .*\(4, 4, 3\)"),
        (lambda file: np.save(file, IMAGES.astype(np.float32)), "it holds float32"),
        (lambda file: np.save(file, np.array([{}])), "is damaged"),
    ],
    ids=["missing", "empty", "truncated", "another shape", "float", "pickle"],
)
def test_a_spoilt_shard_is_told(tmp_path: Path, spoil, sentence: str) -> None:
    write(tmp_path / "shards", shard_bytes=10 * 48)
    spoil(shard_file(tmp_path / "shards", 0))
    with pytest.raises(UserError, match=rf"images-00000\.npy .*{sentence}"):
        map_shard(tmp_path / "shards", 0, (4, 4, 3))


def test_a_writer_goes_on_after_shards_that_are_there(tmp_path: Path) -> None:
    _, digests = write(tmp_path / "shards", shard_bytes=5 * 48)
    writer = ShardWriter(tmp_path / "shards", (4, 4, 3), digests, shard_bytes=5 * 48)
    assert writer.append(IMAGES[3]) == (2, 0)
    writer.flush()
    assert writer.digests[:2] == digests
    assert len(writer.digests) == 3
    np.testing.assert_array_equal(map_shard(tmp_path / "shards", 2, (4, 4, 3)), IMAGES[3:4])


def resident(pixels: np.memmap) -> np.ndarray:
    """Return whether each page of a mapped file is in the system's cache."""
    pages = -(-len(pixels.base) // mmap.PAGESIZE)
    found = (ctypes.c_ubyte * pages)()
    address = ctypes.c_void_p(pixels.ctypes.data - pixels.offset)
    assert ctypes.CDLL(None, use_errno=True).mincore(address, ctypes.c_size_t(len(pixels.base)), found) == 0
    return np.frombuffer(found, np.uint8) & 1 == 1


@pytest.mark.skipif(sys.platform != "linux", reason="mincore is Linux's")
def test_what_is_read_ahead_comes_into_the_cache_and_nothing_else_does(disk: Path) -> None:
    folder = disk / "shards"
    folder.mkdir()
    writer = ShardWriter(folder, (64, 64, 1), shard_bytes=2**25)
    for number in range(2**13):
        writer.append(np.full((64, 64, 1), number % 256, np.uint8))
    writer.flush()
    with shard_file(folder, 0).open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    pixels = map_shard(folder, 0, (64, 64, 1))
    # Its header has been read.
    if resident(pixels).sum() > 100:
        pytest.skip("this file system keeps all in memory")
    # Two pieces, in any order, of 1 and 2 MiB.
    rows = np.random.default_rng(0).permutation(np.r_[1000:1250, 4000:4500])
    read_ahead(pixels, rows)
    wanted = np.zeros(len(resident(pixels)), bool)
    wanted[[*range(1000, 1251), *range(4000, 4501)]] = True
    wait_for(lambda: resident(pixels)[wanted].all())
    # Systems read a little more.
    assert resident(pixels).sum() < wanted.sum() + 200
    np.testing.assert_array_equal(pixels[4499], np.full((64, 64, 1), 4499 % 256))


def test_an_array_in_memory_needs_no_reading(tmp_path: Path) -> None:
    read_ahead(IMAGES, np.arange(3))
    write(tmp_path / "shards", shard_bytes=10 * 48)
    read_ahead(map_shard(tmp_path / "shards", 0, (4, 4, 3)), np.arange(0))
