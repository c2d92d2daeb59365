"""Many processes give what one gives."""

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from diffusion_core.data import workers
from diffusion_core.data.decoding import Decoding
from diffusion_core.data.raw import RawFile
from diffusion_core.data.workers import CHUNK, decode_all, in_chunks
from diffusion_core.errors import UserError
from tests.data.encoded import encoded
from tests.data.packed import pack


def write_images(folder: Path, count: int, **others: bytes) -> list[RawFile]:
    """Pack images of one shade each, and replace some by others."""
    images = {f"{number:04d}.png": encoded(Image.new("L", (2, 2), number % 256), "PNG") for number in range(count)}
    return pack(folder, images | {f"{name.removeprefix('image')}.png": content for name, content in others.items()})


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_come_in_the_order_of_the_files(tmp_path: Path, count: int) -> None:
    files = write_images(tmp_path, 3 * CHUNK + 5)
    results = decode_all(tmp_path, files, Decoding((2, 2), 1), workers=count)
    shades = [int(decoded.pixels[0, 0, 0]) for decoded in results]
    assert shades == [position % 256 for position in range(len(files))]


def test_what_killed_workers_did_is_done_again(tmp_path: Path) -> None:
    # More chunks than may wait, so that work remains after the first result.
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    files = pack(tmp_path, {"noise.png": encoded(Image.fromarray(noise), "PNG")})
    others = set(psutil.Process().children())
    results = decode_all(tmp_path, files * 10 * CHUNK, Decoding((8, 8), 3), workers=2)
    first = next(results)
    for worker in set(psutil.Process().children()) - others:
        worker.kill()
    rest = list(results)
    assert len(rest) == 10 * CHUNK - 1
    assert all((each.pixels == first.pixels).all() for each in rest)


def slow_jpeg(scans: int) -> bytes:
    """A progressive JPEG of few bytes, whose last scan comes again and again."""
    jpeg = encoded(Image.new("L", (7000, 7000)), "JPEG", progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:last] + jpeg[last:-2] * scans + jpeg[-2:]


def test_a_file_that_takes_too_long_is_left_out(tmp_path: Path) -> None:
    files = write_images(tmp_path, CHUNK + 5, image0003=slow_jpeg(2000))
    results = [*decode_all(tmp_path, files, Decoding((2, 2), 1, max_seconds=2.0), workers=2)]
    assert [each.reason for each in results if each.reason] == [
        "decoding takes longer than prepare.max_seconds, which is 2"
    ]
    assert results[3].reason is not None
    assert int(results[-1].pixels[0, 0, 0]) == (CHUNK + 4) % 256


def harmed(signal_number: int | None, original):
    """A decoder that a signal ends at one file, or that has too little memory for it."""

    def decode(content, wanted):
        if content == b"harm" and signal_number is None:
            raise MemoryError
        if content == b"harm":
            os.kill(os.getpid(), signal_number)
        return original(content, wanted)

    return decode


needs_fork = pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="processes would not be harmed")


@needs_fork
def test_a_decoder_that_dies_costs_its_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "decode", harmed(signal.SIGSEGV, workers.decode))
    files = write_images(tmp_path, CHUNK, image0009=b"harm")
    results = [*decode_all(tmp_path, files, Decoding((2, 2), 1), workers=2)]
    assert {each.reason for each in results} == {None, "its decoder dies with exit code -11"}
    assert [number for number, each in enumerate(results) if each.reason] == [9]


@needs_fork
@pytest.mark.parametrize("signal_number", [None, signal.SIGKILL])
def test_too_little_memory_stops_the_run(signal_number, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed alone too was most likely killed for want of memory."""
    monkeypatch.setattr(workers, "decode", harmed(signal_number, workers.decode))
    files = write_images(tmp_path, CHUNK, image0009=b"harm")
    with pytest.raises(UserError, match=r"memory is too small to decode .*0009\.png"):
        list(decode_all(tmp_path, files, Decoding((2, 2), 1), workers=2))


@pytest.mark.parametrize("alone", [False, True])
def test_a_pack_that_is_missing_or_damaged_makes_no_bad_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    files = write_images(tmp_path, 3)
    if alone:
        monkeypatch.setattr(workers, "_until_one_dies", lambda *_: iter(()))
    (file,) = tmp_path.glob("*.zip")
    content = bytearray(file.read_bytes())
    content[files[1].offset] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"zip is damaged \(the sha256 of 0001\.png differs .*--single-item ingest"):
        list(decode_all(tmp_path, files, Decoding((2, 2), 1)))
    file.unlink()
    with pytest.raises(UserError, match=r"zip is damaged \(it is missing\)"):
        list(decode_all(tmp_path, files, Decoding((2, 2), 1)))


def test_of_no_files_nothing_comes(tmp_path: Path) -> None:
    assert list(decode_all(tmp_path, [], Decoding((2, 2), 1))) == []


def test_a_caller_that_leaves_early_leaves_no_process(tmp_path: Path) -> None:
    others = set(psutil.Process().children())
    results = decode_all(tmp_path, write_images(tmp_path, 10 * CHUNK), Decoding((2, 2), 1), workers=2)
    next(results)
    workers = set(psutil.Process().children()) - others
    assert len(workers) == 2
    results.close()
    assert not any(worker.is_running() for worker in workers)


def sized(*sizes: int) -> list[RawFile]:
    return [RawFile(str(number), "", size, None, "", 0) for number, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "lengths"),
    [
        ([], []),
        ([1] * CHUNK, [CHUNK]),
        ([1] * (CHUNK + 1), [CHUNK, 1]),
        # A large file is a task of its own, so that few of them are in memory at once.
        ([9 * 2**20, 1, 1, 9 * 2**20, 1], [1, 2, 1, 1]),
        ([4 * 2**20] * 5, [2, 2, 1]),
    ],
)
def test_tasks_are_of_so_many_files_and_bytes(sizes: list[int], lengths: list[int]) -> None:
    chunks = [*in_chunks(sized(*sizes))]
    assert [len(chunk) for chunk in chunks] == lengths
    assert [file for chunk in chunks for file in chunk] == sized(*sizes)
