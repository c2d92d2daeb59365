"""How files are decoded: what `prepare` is asked for, and what decides its pixels."""

from dataclasses import dataclass, field
from typing import Literal

from diffusion_core.data.crops import Crop, Middle

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
        crop: which parts become images.
        min_size: the least side of an image that is used, in pixels.
        max_aspect: the largest ratio of the sides of an image that is used; None for any.
        linear_light: whether images are resized in intensities.
    """

    size: tuple[int, int]
    channels: int
    sample_range: SampleRange = "type"
    color_profile: ColorProfile = "convert"
    max_pixels: int = 200_000_000
    max_seconds: float = 20.0
    crop: Crop = field(default_factory=Middle)
    min_size: int = 1
    max_aspect: float | None = None
    linear_light: bool = False
