"""Many processes give what one gives."""

import hashlib
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
from diffusion_core.data.workers import CHUNK, decode_all
from diffusion_core.errors import UserError
from tests.data.encoded import encoded


def write_images(folder: Path, count: int) -> list[Path]:
    files = [folder / f"{position:04d}.png" for position in range(count)]
    for position, file in enumerate(files):
        Image.new("L", (2, 2), position % 256).save(file)
    return files


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_come_in_the_order_of_the_files(tmp_path: Path, count: int) -> None:
    files = write_images(tmp_path, 3 * CHUNK + 5)
    shades = [int(decoded.pixels[0, 0, 0]) for decoded in decode_all(files, Decoding((2, 2), 1), workers=count)]
    assert shades == [position % 256 for position in range(len(files))]


def test_what_killed_workers_did_is_done_again(tmp_path: Path) -> None:
    # More chunks than may wait, so that work remains after the first result.
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    others = set(psutil.Process().children())
    results = decode_all([tmp_path / "noise.png"] * 10 * CHUNK, Decoding((8, 8), 3), workers=2)
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
    files = write_images(tmp_path, CHUNK + 5)
    files[3].write_bytes(slow_jpeg(2000))
    results = [*decode_all(files, Decoding((2, 2), 1, max_seconds=2.0), workers=2)]
    assert [each.reason for each in results if each.reason] == [
        "decoding takes longer than prepare.max_seconds, which is 2"
    ]
    assert results[3].sha256 == hashlib.sha256(slow_jpeg(2000)).hexdigest()
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
    files = write_images(tmp_path, CHUNK)
    files[9].write_bytes(b"harm")
    results = [*decode_all(files, Decoding((2, 2), 1), workers=2)]
    assert {each.reason for each in results} == {None, "its decoder dies with exit code -11"}
    assert [number for number, each in enumerate(results) if each.reason] == [9]


@needs_fork
@pytest.mark.parametrize("signal_number", [None, signal.SIGKILL])
def test_too_little_memory_stops_the_run(signal_number, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed alone too was most likely killed for want of memory."""
    monkeypatch.setattr(workers, "decode", harmed(signal_number, workers.decode))
    files = write_images(tmp_path, CHUNK)
    files[9].write_bytes(b"harm")
    with pytest.raises(UserError, match=r"memory is too small to decode .*0009\.png"):
        list(decode_all(files, Decoding((2, 2), 1), workers=2))


def test_a_file_that_cannot_be_read_is_no_bad_image(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(decode_all([tmp_path / "missing.png"], Decoding((2, 2), 1)))


def test_a_caller_that_leaves_early_leaves_no_process(tmp_path: Path) -> None:
    others = set(psutil.Process().children())
    results = decode_all(write_images(tmp_path, 10 * CHUNK), Decoding((2, 2), 1), workers=2)
    next(results)
    workers = set(psutil.Process().children()) - others
    assert len(workers) == 2
    results.close()
    assert not any(worker.is_running() for worker in workers)
