"""What is measured of prepared images: brightness, contrast, colour, blur and noise.

Images are gray or RGB in [0, 1], on white where they are transparent. Gray is the ITU-R BT.601 luma, as in `decode`.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from skimage.measure import blur_effect

from diffusion_core.data.manifest import ManifestRow
from diffusion_core.data.report.version import Pixels, Version

Floats = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# Blur takes milliseconds for a large image, so that fewer of these are measured.
SHARPNESS_PIXELS = 2**24
# Pixels that are in memory as numbers at once.
CHUNK_PIXELS = 2**21

# High-pass filter of Daubechies' wavelet with two vanishing moments: it takes no notice of even gradients.
ROOT = 3**0.5
HIGH_PASS = np.array([1 - ROOT, ROOT - 3, 3 + ROOT, -1 - ROOT], np.float32) / (4 * 2**0.5)
# The median of |x| where x is normal with standard deviation 1.
NORMAL_MEDIAN = 0.6745
# Coefficients below it come from rounding.
ROUNDING = 1e-6


def measures(version: Version, rows: Sequence[ManifestRow]) -> dict[str, Values]:
    """Return brightness, contrast, blur and noise of images, and the means of their colours where they have any.

    Blur and noise are measured of the first images alone where images are large; see `SHARPNESS_PIXELS`.
    """
    found: dict[str, list[Values]] = {}
    height, width, channels = version.image_shape or (1, 1, 1)
    sharp = max(1, SHARPNESS_PIXELS // (height * width))
    chunk = max(1, CHUNK_PIXELS // (height * width))
    for start in range(0, len(rows), chunk):
        images = opaque(version.pixels(rows[start : start + chunk]))
        gray = images[..., 0] if channels == 1 else images @ LUMA
        values = {"brightness": gray.mean((1, 2)), "contrast": gray.std((1, 2))}
        if channels != 1:
            values |= dict(zip(("red", "green", "blue"), images.mean((1, 2)).T, strict=True))
        first = gray[: max(0, sharp - start)]
        values |= {"blur": blur(first), "noise": noise(first)}
        for name, each in values.items():
            found.setdefault(name, []).append(each.astype(np.float64))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def sizes(rows: Sequence[ManifestRow]) -> Values:
    """Return the size of each original: the square root of its width times its height, in pixels."""
    return np.array([((row.width or 0) * (row.height or 0)) ** 0.5 for row in rows], np.float64)


def opaque(pixels: Pixels) -> Floats:
    """Return images, uint8 (n, H, W, C), as gray or RGB in [0, 1], on white."""
    images: Floats = pixels.astype(np.float32) / np.float32(255)
    if images.shape[-1] == 4:
        alpha = images[..., 3:]
        images = images[..., :3] * alpha + (np.float32(1) - alpha)
    return images


def blur(gray: Floats) -> Values:
    """Return the blur of images, (n, H, W), from 0 for sharp to 1 (Crete et al. 2007, "The blur effect").

    NaN where an image is too small.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.array([blur_effect(each) for each in gray], np.float64)  # type: ignore[no-untyped-call]


def noise(gray: Floats) -> Values:
    """Return the standard deviation of the noise in images, (n, H, W); NaN where an image is too small.

    It is median(|d|) / 0.6745 over the diagonal wavelet coefficients d that are not 0 (Donoho and Johnstone 1994,
    "Ideal spatial adaptation by wavelet shrinkage").
    """
    if min(gray.shape[1:]) < len(HIGH_PASS):
        return np.full(len(gray), np.nan)
    diagonal = np.abs(_high_pass(_high_pass(gray).swapaxes(1, 2))).reshape(len(gray), -1)
    diagonal.sort(axis=1)
    zeros = np.sum(diagonal < ROUNDING, axis=1)
    middle = (zeros + diagonal.shape[1] - 1) / 2
    rows, last = np.arange(len(gray)), diagonal.shape[1] - 1
    lower, upper = (np.minimum(edge(middle).astype(int), last) for edge in (np.floor, np.ceil))
    median = (diagonal[rows, lower] + diagonal[rows, upper]) / 2
    return np.where(zeros > last, 0.0, median / NORMAL_MEDIAN).astype(np.float64)


def _high_pass(images: Floats) -> Floats:
    """Filter rows, and keep every second value."""
    count = (images.shape[-1] - len(HIGH_PASS)) // 2 + 1
    parts = [weight * images[..., start : start + 2 * count : 2] for start, weight in enumerate(HIGH_PASS)]
    filtered: Floats = np.sum(parts, axis=0, dtype=np.float32)
    return filtered
