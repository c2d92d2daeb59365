"""Images as files, and what decoding makes of them."""

import io

from PIL import Image
from skimage import data

from diffusion_core.data.decode import Decoded, decode
from diffusion_core.data.decoding import Decoding


def photograph(width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(data.astronaut()).resize((width, height))


def encoded(image: Image.Image, name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def decode_bytes(content: bytes, size: tuple[int, int] = (2, 2), channels: int = 3, **options: object) -> Decoded:
    return decode(content, Decoding(size, channels, **options))
