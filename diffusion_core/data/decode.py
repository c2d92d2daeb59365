"""One image file to pixels of one shape, or the reason why not.

Steps: recognise, check size and integrity, decode, convert to 8-bit gray (ITU-R BT.601 luma: 0.299 R + 0.587 G +
0.114 B), RGB or RGBA, crop to the largest part in the middle that has the shape of the result, resize, turn upright by
EXIF. Nothing is stretched or padded. Of an animation the first frame counts. Colour profiles are not applied.

Gray and RGB have no transparency, so it is put on white first. In RGBA it is kept: an image without it is opaque, and
the colour of an invisible pixel is black, whatever the file has there, so that what looks alike is alike.

The filter is Pillow's bicubic, whose support grows with the reduction so that it is a low-pass filter below the new
Nyquist frequency; resizers with a fixed support alias and bias every metric that is measured afterwards (Parmar et
al. 2022, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation"). Lanczos is as free of aliasing but rings
more at the hard edges of drawings and glyphs.
"""

import hashlib
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from diffusion_core.data.sources.folder import FORMATS
from diffusion_core.errors import UserError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# Of the eight orientations of EXIF, those whose rows are the picture's columns.
LYING = (5, 6, 7, 8)


@dataclass(frozen=True)
class Decoded:
    """What became of one file: `pixels`, or the `reason` why there are none.

    Attributes:
        sha256: of the file's bytes, in hexadecimal.
        width, height, mode: of the file as its header gives them (Pillow's name of the mode); None where the header
            itself cannot be trusted.
        pixels: (height, width, channels) as asked for.
    """

    sha256: str
    width: int | None
    height: int | None
    mode: str | None
    pixels: npt.NDArray[np.uint8] | None
    reason: str | None


def decode(file: Path, size: tuple[int, int], channels: int) -> Decoded:
    """Decode `file` to `size`, height and width in pixels, and 1 (gray), 3 (RGB) or 4 (RGBA) channels.

    Raises:
        OSError: the file cannot be read. Whatever is wrong with its content is told in `Decoded.reason`.
    """
    width = height = mode = pixels = reason = None
    with file.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        try:
            with warnings.catch_warnings(action="ignore"):
                # Pillow compares the header's size with Image.MAX_IMAGE_PIXELS (89 million) before it decodes.
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                header = Image.open(stream, formats=FORMATS)
                (width, height), mode = header.size, header.mode
                # A pass over the checksums of a PNG, which decoding skips. It consumes the image.
                header.verify()
                pixels = _pixels(Image.open(stream, formats=FORMATS), size, channels)
        except Exception as error:  # decoders raise nearly anything on damaged bytes
            reason = _reason(error, os.fstat(stream.fileno()).st_size)
    return Decoded(sha256, width, height, mode, pixels, reason)


def _pixels(image: Image.Image, size: tuple[int, int], channels: int) -> npt.NDArray[np.uint8]:
    # A large JPEG is decoded at 1/2, 1/4 or 1/8, which is ten times as fast; at least four times the final size
    # remain, however the picture lies, so that the filter below still decides what the result looks like.
    reduced = image.draft(None, (4 * max(size), 4 * max(size)))
    image.load()
    width, height = reduced[1][2:] if reduced else image.size  # a reduced JPEG is padded to whole pixels
    # The few pixels of the result are turned upright and not the many of the file; until then all lies as stored.
    lying = image.getexif().get(ExifTags.Base.Orientation) in LYING
    stored_height, stored_width = reversed(size) if lying else size
    part = _converted(image, channels).resize(
        (stored_width, stored_height),
        Image.Resampling.BICUBIC,
        box=_middle(width, height, stored_width, stored_height),
    )
    part.info = image.info  # which has the orientation
    ImageOps.exif_transpose(part, in_place=True)
    pixels = np.array(part).reshape(*size, channels)
    if channels == 4:
        pixels[pixels[..., 3] == 0] = 0
    return pixels


def _middle(width: float, height: float, across: int, down: int) -> tuple[float, float, float, float]:
    """Return the largest box in the middle of `width` x `height` that is `across` to `down`: left, top, right, bottom.

    Sides that are whole numbers stay so where the shapes agree, because products and quotients are then exact.
    """
    kept_width = min(width, height * across / down)
    kept_height = min(height, width * down / across)
    left, top = (width - kept_width) / 2, (height - kept_height) / 2
    return left, top, left + kept_width, top + kept_height


def _converted(image: Image.Image, channels: int) -> Image.Image:
    """Return an image of 8 bits a channel, and with transparency only where there are four channels."""
    if image.mode.startswith("I;16"):
        # 65535 = 255 * 257. Pillow's own conversion clips at 255.
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("pixels of 32 bits have no agreed range; save the image with 8 or 16 bits")
    if channels != 4 and image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGB", image.size, "white")
        paper.paste(image, mask=image)
        image = paper
    return image.convert(MODES[channels])


def _reason(error: Exception, size: int) -> str:
    if size == 0:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):  # its own message holds the address of the stream
        return f"not one of {', '.join(FORMATS)}, or its header is damaged"
    return f"{type(error).__name__}: {error}"


CHUNK = 64  # files a worker takes at a time


def decode_all(
    files: Sequence[Path], size: tuple[int, int], channels: int, *, workers: int | None = None
) -> Iterator[Decoded]:
    """Yield `decode(file, size, channels)` of each of `files`, which is not empty, in order.

    `workers` is the number of processes, by default one a core; the result does not depend on it. At most two chunks
    a worker wait to be taken, however slowly they are.

    Raises:
        UserError: a worker was killed, as happens when the machine has no memory left.
        OSError: a file cannot be read.
    """
    chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    workers = min(workers or os.cpu_count() or 1, len(chunks))
    waiting: deque[Future[list[Decoded]]] = deque()
    pool = ProcessPoolExecutor(workers, initializer=_follow_parent)
    try:
        for chunk in chunks:
            waiting.append(pool.submit(_decode_chunk, chunk, size, channels))
            if len(waiting) > 2 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "prepare: a process that decodes data/raw was killed, most likely for want of memory:"
            " free some, or take the largest images out of the source"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _decode_chunk(files: Sequence[Path], size: tuple[int, int], channels: int) -> list[Decoded]:
    return [decode(file, size, channels) for file in files]


def _follow_parent() -> None:
    """Leave the signals to the parent, and end this worker when the parent is gone: a killed one cannot say so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def watch() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
