"""Many processes give what one gives."""

from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from diffusion_core.data.decode import CHUNK, decode_all
from diffusion_core.errors import UserError


def write_images(folder: Path, count: int) -> list[Path]:
    files = [folder / f"{position:04d}.png" for position in range(count)]
    for position, file in enumerate(files):
        Image.new("L", (2, 2), position % 256).save(file)
    return files


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_the_order_of_the_files(tmp_path: Path, workers: int) -> None:
    files = write_images(tmp_path, 3 * CHUNK + 5)
    shades = [int(decoded.pixels[0, 0, 0]) for decoded in decode_all(files, (2, 2), 1, workers=workers)]
    assert shades == [position % 256 for position in range(len(files))]


def test_a_killed_worker_is_told(tmp_path: Path) -> None:
    # More chunks than may wait, so that work remains after the first result.
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    others = set(psutil.Process().children())
    results = decode_all([tmp_path / "noise.png"] * 10 * CHUNK, (8, 8), 3, workers=2)
    next(results)
    for worker in set(psutil.Process().children()) - others:
        worker.kill()
    with pytest.raises(UserError, match="was killed, most likely for want of memory"):
        list(results)


def test_a_caller_that_leaves_early_leaves_no_process(tmp_path: Path) -> None:
    others = set(psutil.Process().children())
    results = decode_all(write_images(tmp_path, 10 * CHUNK), (2, 2), 1, workers=2)
    next(results)
    workers = set(psutil.Process().children()) - others
    assert len(workers) == 2
    results.close()
    assert not any(worker.is_running() for worker in workers)
