"""Pictures for the measurements of `ingest` and `prepare`."""

import io
import random
import shutil
import struct
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data
from tqdm import tqdm

# Large pictures, as cameras make them.
LARGE, WIDTH, HEIGHT = 20_000, 1500, 1000
DIFFERENT = 200


def with_new(archive: Path, target: Path, count: int) -> None:
    """Write a copy of a zip file that has more images: its first ones, each with one pixel changed."""
    shutil.copyfile(archive, target)
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "a") as made:
        names = [name for name in source.namelist() if name.lower().endswith((".jpg", ".jpeg"))]
        if len(names) < count:
            raise ValueError(f"{archive} has {len(names)} JPEGs; it must have at least {count}")
        for name in names[:count]:
            with Image.open(io.BytesIO(source.read(name))) as image:
                changed = image.convert("RGB")
            changed.putpixel((0, 0), (255, 0, 0))
            file = io.BytesIO()
            changed.save(file, "JPEG", quality=90)
            made.writestr(f"{Path(name).parent}/new-{Path(name).name}", file.getvalue())


def large_pictures() -> Iterator[bytes]:
    """Yield large JPEGs: parts of four photographs, enlarged, whose bytes all differ by a comment."""
    photographs = [Image.fromarray(each) for each in (data.astronaut(), data.chelsea(), data.coffee(), data.rocket())]  # type: ignore[no-untyped-call]
    choose = random.Random(0)
    files = []
    for number in range(DIFFERENT):
        photograph = photographs[number % len(photographs)]
        width = choose.uniform(0.4, 1.0) * min(photograph.width, photograph.height * WIDTH / HEIGHT)
        height = width * HEIGHT / WIDTH
        left, top = choose.uniform(0, photograph.width - width), choose.uniform(0, photograph.height - height)
        stream = io.BytesIO()
        photograph.resize((WIDTH, HEIGHT), box=(left, top, left + width, top + height)).save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    for number in range(LARGE):
        file = files[number % DIFFERENT]
        yield file[:2] + b"\xff\xfe\x00\x06" + struct.pack(">I", number) + file[2:]


def write_tiny(file: Path, count: int) -> None:
    """Write a zip file of PNGs of 8 x 8 random pixels, in two classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    with zipfile.ZipFile(file, "w") as archive:
        for number, each in enumerate(pixels):
            stream = io.BytesIO()
            Image.fromarray(each).save(stream, "PNG")
            archive.writestr(f"{number % 2}/{number:06d}.png", stream.getvalue())


def write_pictures(folder: Path, pictures: Iterable[bytes]) -> int:
    """Write the pictures to the folders of two classes, and return their mean size."""
    total = 0
    for number, content in enumerate(tqdm(pictures, total=LARGE, desc="large JPEGs")):
        file = folder / str(number % 2) / f"{number:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        total += len(content)
    return total // LARGE
