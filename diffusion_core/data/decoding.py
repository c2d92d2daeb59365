"""How files are decoded: what `prepare` is asked for, and what decides its pixels."""

from dataclasses import dataclass
from typing import Literal

SampleRange = Literal["type", "data"]
ColorProfile = Literal["convert", "ignore"]


@dataclass(frozen=True)
class Decoding:
    """How files are decoded.

    Attributes:
        size: height and width of the result in pixels.
        channels: 1 (gray), 3 (RGB) or 4 (RGBA).
        sample_range: what is white where a file has more than 8 bits a sample; see `bit_depth`.
        color_profile: whether to convert colours to sRGB by the file's profile; see `color`.
        max_pixels: pixels of the largest image that is decoded.
        max_seconds: seconds after which decoding one file is given up.
    """

    size: tuple[int, int]
    channels: int
    sample_range: SampleRange = "type"
    color_profile: ColorProfile = "convert"
    max_pixels: int = 200_000_000
    max_seconds: float = 20.0
