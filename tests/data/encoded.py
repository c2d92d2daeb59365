"""Images as files, and what decoding makes of them."""

import io
from pathlib import Path

from PIL import Image
from skimage import data

from diffusion_core.data.decode import Decoded, decode


def photograph(width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(data.astronaut()).resize((width, height))


def encoded(image: Image.Image, name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def decode_bytes(folder: Path, content: bytes, size: tuple[int, int] = (2, 2), channels: int = 3) -> Decoded:
    file = folder / "image"
    file.write_bytes(content)
    return decode(file, size, channels)
