"""data/raw of given files, in the working directory."""

import io
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion_core.data.raw import PackWriter, write_index
from diffusion_core.data.sources.item import Item

RAW = Path("data/raw")


def ingest(files: Mapping[str, bytes]) -> None:
    """Replace data/raw by these files, by path."""
    shutil.rmtree(RAW, ignore_errors=True)
    RAW.mkdir(parents=True)
    writer = PackWriter(RAW)
    for path, content in files.items():
        writer.add(Item(path, len(content), None), content)
    write_index(RAW, writer.close())


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def noise(count: int, seed: int = 0, low: int = 0, high: int = 256, side: int = 8) -> list[bytes]:
    """Different images of random pixels."""
    pixels = np.random.default_rng(seed).integers(low, high, (count, side, side, 3), np.uint8)
    return [png(each) for each in pixels]
