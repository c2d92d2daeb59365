"""Colours as sRGB, whatever space a file stores.

An ICC profile is applied by LittleCMS with the relative colorimetric intent: white stays white, and colours outside of
sRGB are clipped. A profile that cannot be read, or is of another kind than the pixels, is ignored, as browsers do.

A PNG may instead say the exponent of its samples (gAMA) and its primaries (cHRM). Then linear = sample^(1 / gamma), and
a matrix takes linear RGB of these primaries to linear sRGB (PNG specification, third edition, 11.3.2). White stays
white here too.
"""

import io
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

# The modes of pixels by the colour space of a profile.
_SPACES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK", "Lab": "LAB"}
# x and y of white, red, green and blue.
SRGB = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
# Files say 1 / 2.2 for sRGB, whose curve has no single exponent.
SRGB_GAMMA = 0.45455
_Floats = npt.NDArray[np.float64]


def srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return an image of mode L, LA, RGB or RGBA in sRGB.

    Args:
        image: an image of any mode of 8 bits.
        profile: its ICC profile, or None for none.
    """
    image = _without_palette(image)
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    colors = image.convert(image.mode.removesuffix("A")) if alpha else image
    if profile is not None:
        colors = _converted(colors, profile)
    if colors.mode not in ("L", "RGB"):
        colors = colors.convert("RGB")
    if alpha is not None:
        colors.putalpha(alpha)
    return colors


def _without_palette(image: Image.Image) -> Image.Image:
    """Return the image in a mode that has no palette, no bilevel pixels and no colour that means transparent."""
    if image.mode in ("RGBa", "La"):
        return image.convert(image.mode.upper())
    if image.has_transparency_data and image.mode not in ("LA", "RGBA"):
        return image.convert("RGBA")
    if image.mode in ("L", "LA", "RGB", "RGBA", "CMYK", "LAB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _converted(colors: Image.Image, profile: bytes) -> Image.Image:
    space = _space(profile)
    if space == "RGB" and colors.mode == "L":
        colors = colors.convert("RGB")
    transform = _transform(profile, space) if space == colors.mode else None
    return colors if transform is None else ImageCms.applyTransform(colors, transform) or colors


@lru_cache(maxsize=64)
def _space(profile: bytes) -> str | None:
    """Return the mode of pixels that a profile describes, or None for another or a damaged profile."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except (OSError, ImageCms.PyCMSError):
        return None
    return _SPACES.get(opened.profile.xcolor_space.strip())


@lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the conversion to sRGB, or None where the profile is sRGB itself or has no such conversion."""
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        )
    except ImageCms.PyCMSError:
        return None
    if mode == "RGB":
        # Rounding alone would change pixels that are sRGB already, as most are.
        steps = np.arange(0, 256, 15).astype(np.uint8)
        colors = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
        converted = ImageCms.applyTransform(Image.fromarray(colors), transform)
        if converted is not None and np.abs(np.asarray(converted).astype(int) - colors).max() <= 1:
            return None
    return transform


def is_srgb(gamma: float, primaries: tuple[float, ...]) -> bool:
    """Return whether gAMA and cHRM of a PNG say what sRGB is, as most files do that have them."""
    return abs(gamma - SRGB_GAMMA) < 0.01 and all(abs(a - b) < 0.002 for a, b in zip(primaries, SRGB, strict=True))


def from_gamma(samples: _Floats, gamma: float, primaries: tuple[float, ...] = SRGB) -> _Floats:
    """Return sRGB of the samples of a PNG.

    Args:
        samples: (H, W, 1) gray or (H, W, 3) RGB, from 0 to 1.
        gamma: the exponent of the file's gAMA, samples = linear^gamma.
        primaries: x and y of white, red, green and blue, of the file's cHRM.

    Returns:
        Values from 0 to 1, of the shape of `samples`.
    """
    linear = samples ** (1.0 / gamma)
    if samples.shape[-1] == 3:
        linear = linear @ (np.linalg.inv(_to_xyz(SRGB)) @ _adaptation(primaries) @ _to_xyz(primaries)).T
    linear = linear.clip(0.0, 1.0)
    # IEC 61966-2-1.
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1.0 / 2.4) - 0.055)
    return np.asarray(encoded, np.float64)


def _white(primaries: tuple[float, ...]) -> _Floats:
    x, y = primaries[:2]
    return np.array([x / y, 1.0, (1.0 - x - y) / y])


def _to_xyz(primaries: tuple[float, ...]) -> _Floats:
    """Return the matrix from linear RGB to XYZ, by which RGB (1, 1, 1) is white."""
    pairs = np.reshape(primaries[2:], (3, 2))
    columns = np.stack([pairs[:, 0], pairs[:, 1], 1.0 - pairs.sum(axis=1)])
    return np.asarray(columns * np.linalg.solve(columns, _white(primaries)), np.float64)


def _adaptation(primaries: tuple[float, ...]) -> _Floats:
    """Return the matrix in XYZ that takes a white to that of sRGB, by the cone responses of Bradford (Lam 1985)."""
    cones = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    gains = (cones @ _white(SRGB)) / (cones @ _white(primaries))
    return np.asarray(np.linalg.inv(cones) @ np.diag(gains) @ cones, np.float64)
