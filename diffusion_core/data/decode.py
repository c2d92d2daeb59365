"""Decodes image files to pixels of one shape, or returns the reason why a file cannot be decoded.

Decoding detects the format, checks size and integrity, and converts to 8-bit gray, RGB or RGBA. Gray is the ITU-R
BT.601 luma, 0.299 R + 0.587 G + 0.114 B. Then it crops the largest centred part with the result's aspect ratio, resizes
it and applies the EXIF orientation. Nothing is stretched or padded. Only the first frame of an animation is used.
Colour profiles are ignored.

For gray and RGB, transparent images are composed on white. RGBA keeps transparency. Images without it become opaque,
and fully transparent pixels become black, so that images that look the same have the same pixels.

The filter is Pillow's bicubic. Its support grows with the reduction, so it is a low-pass filter below the new Nyquist
frequency. Resizers with a fixed support cause aliasing, which biases all later metrics (Parmar et al. 2022, "On Aliased
Resizing and Surprising Subtleties in GAN Evaluation"). Lanczos avoids aliasing too, but rings more at hard edges.
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
from diffusion_core.errors import UserError, is_out_of_memory

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# The largest image that is decoded; Pillow warns about a larger one.
WEBP_PIXELS = 89_478_485
# The EXIF orientations, of eight, that swap rows and columns.
LYING = (5, 6, 7, 8)


@dataclass(frozen=True)
class Decoded:
    """The result of decoding one file: `pixels`, or the `reason` why there are none.

    Attributes:
        sha256: sha256 of the file's bytes, in hexadecimal.
        width: width in the file's header; None if the header is damaged.
        height: height in the file's header; None if the header is damaged.
        mode: Pillow's name of the mode in the file's header; None if the header is damaged.
        pixels: uint8 (height, width, channels) of the requested size, or None.
        reason: why there are no pixels, or None.
    """

    sha256: str
    width: int | None
    height: int | None
    mode: str | None
    pixels: npt.NDArray[np.uint8] | None
    reason: str | None


def decode(file: Path, size: tuple[int, int], channels: int) -> Decoded:
    """Decode a file.

    Args:
        file: the image file.
        size: height and width of the result in pixels.
        channels: 1 (gray), 3 (RGB) or 4 (RGBA).

    Raises:
        OSError: the file cannot be read. For damaged content, see `Decoded.reason`.
        MemoryError: memory is too small to decode it, which says nothing of the file; the message is its path.
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
                # Checks the checksums of a PNG, which decoding skips. The image cannot be used afterwards.
                header.verify()
                pixels = _pixels(Image.open(stream, formats=FORMATS), size, channels)
        except Exception as error:  # decoders raise nearly anything on damaged bytes
            if _lacks_memory(error):
                raise MemoryError(str(file)) from None
            reason = _reason(error, os.fstat(stream.fileno()).st_size)
    return Decoded(sha256, width, height, mode, pixels, reason)


def _pixels(image: Image.Image, size: tuple[int, int], channels: int) -> npt.NDArray[np.uint8]:
    # A large JPEG is decoded at 1/2, 1/4 or 1/8 of its size, which is ten times as fast. At least four times the final
    # size remains in either orientation, so that the filter below determines the result.
    reduced = image.draft(None, (4 * max(size), 4 * max(size)))
    image.load()
    width, height = reduced[1][2:] if reduced else image.size  # a reduced JPEG is padded to whole pixels
    # The orientation is applied to the result, which has fewer pixels; until then sides are as stored in the file.
    lying = image.getexif().get(ExifTags.Base.Orientation) in LYING
    stored_height, stored_width = reversed(size) if lying else size
    part = _converted(image, channels).resize(
        (stored_width, stored_height),
        Image.Resampling.BICUBIC,
        box=_middle(width, height, stored_width, stored_height),
    )
    part.info = image.info  # has the orientation
    ImageOps.exif_transpose(part, in_place=True)
    pixels = np.array(part).reshape(*size, channels)
    if channels == 4:
        pixels[pixels[..., 3] == 0] = 0
    return pixels


def _middle(width: float, height: float, across: int, down: int) -> tuple[float, float, float, float]:
    """Return the largest centred box in `width` x `height` with the aspect ratio `across` : `down`.

    If the aspect ratios are equal, sides remain whole numbers, because the products and quotients are exact.

    Returns:
        left, top, right, bottom.
    """
    kept_width = min(width, height * across / down)
    kept_height = min(height, width * down / across)
    left, top = (width - kept_width) / 2, (height - kept_height) / 2
    return left, top, left + kept_width, top + kept_height


def _converted(image: Image.Image, channels: int) -> Image.Image:
    """Return an image of 8 bits per channel, with transparency only if `channels` is 4."""
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


def _lacks_memory(error: Exception) -> bool:
    """Return whether decoding failed for want of memory."""
    if "could not create decoder object" in str(error):
        # Pillow's only word on a WebP that is damaged or does not fit: see whether the largest one would.
        try:
            np.empty(WEBP_PIXELS * 4, np.uint8)
        except MemoryError:
            return True
    return is_out_of_memory(error)


def _reason(error: Exception, size: int) -> str:
    if size == 0:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):  # its message has the memory address of the stream
        return f"not one of {', '.join(FORMATS)}, or its header is damaged"
    return f"{type(error).__name__}: {error}"


CHUNK = 64  # files per task of a worker process


def decode_all(
    files: Sequence[Path], size: tuple[int, int], channels: int, *, workers: int | None = None
) -> Iterator[Decoded]:
    """Yield `decode(file, size, channels)` of each of `files`, in order.

    At most two chunks per worker are in progress or wait for the caller.

    Args:
        files: the image files; not empty.
        size: height and width of the results in pixels.
        channels: 1 (gray), 3 (RGB) or 4 (RGBA).
        workers: number of processes, by default one per core; does not affect the result.

    Raises:
        UserError: memory is too small, or a worker was killed, which most often has the same reason.
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
    except MemoryError as error:
        raise UserError(
            f"prepare: memory is too small to decode {error}: free some, or take the largest images out of the source"
        ) from None
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
    """Ignore INT, which the parent handles, and end this worker when its parent ends, even if killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def watch() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
