"""Every file becomes known pixels or a reason."""

import hashlib
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.data.encoded import decode_bytes, encoded, photograph


def png(width: int, height: int) -> bytes:
    """A PNG whose header promises an RGB image and whose body holds a hundred bytes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def palette(**options: object) -> bytes:
    image = Image.new("P", (4, 4))
    image.putpalette([10, 20, 30])
    return encoded(image, "PNG", **options)


def solid(name: str, mode: str, color: object, **options: object) -> bytes:
    return encoded(Image.new(mode, (4, 4), color), name, **options)


def gray16(name: str, value: int) -> bytes:
    return encoded(Image.fromarray(np.full((4, 4), value, np.uint16)), name)


@pytest.mark.parametrize(
    ("content", "mode", "rgba", "rgb", "gray"),
    [
        # 0.299 R + 0.587 G + 0.114 B = 59.8 + 58.7 + 5.7
        pytest.param(solid("PNG", "RGB", (200, 100, 50)), "RGB", (200, 100, 50, 255), (200, 100, 50), 124, id="RGB"),
        pytest.param(solid("PNG", "1", 1), "1", (255,) * 4, (255, 255, 255), 255, id="bilevel"),
        pytest.param(
            solid("JPEG", "CMYK", (0, 255, 255, 0), quality=95),
            "CMYK", (255, 0, 0, 255), (255, 0, 0), 76, id="CMYK JPEG",
        ),
        pytest.param(
            solid("TIFF", "CMYK", (255, 0, 255, 0)), "CMYK", (0, 255, 0, 255), (0, 255, 0), 150, id="CMYK TIFF"
        ),
        pytest.param(gray16("PNG", 65535), "I;16", (255,) * 4, (255, 255, 255), 255, id="16-bit white"),
        pytest.param(gray16("PNG", 300), "I;16", (1, 1, 1, 255), (1, 1, 1), 1, id="16-bit dark"),
        pytest.param(gray16("TIFF", 32896), "I;16", (128, 128, 128, 255), (128, 128, 128), 128, id="16-bit TIFF"),
        pytest.param(palette(), "P", (10, 20, 30, 255), (10, 20, 30), 18, id="palette"),
        pytest.param(palette(transparency=0), "P", (0,) * 4, (255, 255, 255), 255, id="palette, transparent"),
        # On white: 255 + (c - 255) * 128 / 255. In RGBA: c * 128 / 255, rounded, * 255 / 128, cut off.
        pytest.param(
            palette(transparency=b"\x80"), "P", (9, 19, 29, 128), (132, 137, 142), 136, id="palette, half transparent"
        ),
        pytest.param(solid("PNG", "LA", (100, 128)), "LA", (99, 99, 99, 128), (177, 177, 177), 177, id="LA"),
        pytest.param(
            solid("PNG", "RGBA", (200, 0, 0, 128)), "RGBA", (199, 0, 0, 128), (227, 127, 127), 157, id="RGBA"
        ),
        pytest.param(
            solid("PNG", "RGBA", (9, 9, 9, 0)), "RGBA", (0,) * 4, (255, 255, 255), 255, id="RGBA, transparent"
        ),
        pytest.param(solid("PNG", "L", 7, transparency=7), "L", (0,) * 4, (255, 255, 255), 255, id="transparent gray"),
        pytest.param(
            solid("WEBP", "RGBA", (200, 0, 0, 128), lossless=True),
            "RGBA", (199, 0, 0, 128), (227, 127, 127), 157, id="WebP",
        ),
        pytest.param(solid("BMP", "RGB", (200, 100, 50)), "RGB", (200, 100, 50, 255), (200, 100, 50), 124, id="BMP"),
    ],
)  # fmt: skip
def test_every_mode_becomes_gray_rgb_and_rgba(content: bytes, mode: str, rgba: tuple, rgb: tuple, gray: int) -> None:
    in_color = decode_bytes(content)
    in_gray, with_alpha = (decode_bytes(content, channels=channels) for channels in (1, 4))
    np.testing.assert_array_equal(with_alpha.pixels, np.broadcast_to(np.uint8(rgba), (2, 2, 4)))
    np.testing.assert_array_equal(in_color.pixels, np.broadcast_to(np.uint8(rgb), (2, 2, 3)))
    np.testing.assert_array_equal(in_gray.pixels, np.full((2, 2, 1), gray, np.uint8))
    assert (in_color.width, in_color.height, in_color.mode, in_color.reason) == (4, 4, mode, None)
    assert in_color.parts[0].sha256 == hashlib.sha256(in_color.pixels.tobytes()).hexdigest()


def test_an_image_of_the_right_size_keeps_every_visible_pixel_and_its_alpha() -> None:
    picture = np.random.default_rng(0).integers(1, 256, (3, 5, 4), np.uint8)
    content = encoded(Image.fromarray(picture), "PNG")
    np.testing.assert_array_equal(decode_bytes(content, (3, 5), channels=4).pixels, picture)


@pytest.mark.parametrize("size", [(4, 4), (2, 2), (8, 8)])
def test_the_color_of_invisible_pixels_is_black_and_runs_into_no_other(size: tuple[int, int]) -> None:
    picture = np.zeros((4, 4, 4), np.uint8)
    picture[:, :2] = 0, 0, 255, 255
    picture[:, 2:] = 255, 0, 0, 0
    pixels = decode_bytes(encoded(Image.fromarray(picture), "PNG"), size, channels=4).pixels
    visible = pixels[..., 3] > 0
    assert not pixels[~visible].any()
    assert not pixels[visible][:, :2].any()
    assert (pixels[:, 0] >= (0, 0, 255, 230)).all()
    assert (pixels[:, -1, 3] <= 25).all()


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_counts(name: str) -> None:
    first, second = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    options = {"lossless": True} if name == "WEBP" else {}
    content = encoded(first, name, save_all=True, append_images=[second], **options)
    np.testing.assert_array_equal(decode_bytes(content).pixels[0, 0], [255, 0, 0])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "the file is empty", id="zero bytes"),
        pytest.param(b"no image at all", "not one of AVIF, BMP, GIF", id="text"),
        pytest.param(encoded(photograph(), "EPS"), "not one of AVIF, BMP, GIF", id="EPS"),
        pytest.param(encoded(photograph(), "PPM"), "not one of AVIF, BMP, GIF", id="PPM"),
        pytest.param(png(60_000, 60_000), "3600000000 pixels, and prepare.max_pixels is 200000000", id="bomb"),
        pytest.param(
            png(14_143, 14_143), "200024449 pixels, and prepare.max_pixels is", id="bomb just above the limit"
        ),
        pytest.param(png(100, 100), "damaged: ", id="header without body"),
        pytest.param(solid("TIFF", "F", 0.5), "no agreed range", id="float"),
        pytest.param(solid("TIFF", "I", 70_000), "no agreed range", id="32-bit"),
        pytest.param(encoded(photograph(), "PNG").replace(b"IDAT", b"IDAt", 1), "", id="damaged chunk"),
    ],
)
def test_what_does_not_decode_is_told(content: bytes, reason: str) -> None:
    decoded = decode_bytes(content)
    assert decoded.pixels is None
    assert reason in decoded.reason
    assert decoded.parts == ()
    assert decode_bytes(content) == decoded


def test_a_flipped_byte_in_a_png_is_found() -> None:
    content = bytearray(encoded(photograph(), "PNG"))
    for position in range(60, len(content) - 12, 400):
        damaged = bytearray(content)
        damaged[position] ^= 1
        assert decode_bytes(bytes(damaged)).reason, position


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_a_truncated_file_never_loses_a_pixel_in_silence(name: str, options: dict) -> None:
    content = encoded(photograph(), name, **options)
    whole = decode_bytes(content).pixels
    cuts = {*range(0, len(content), len(content) // 40), *range(len(content) - 8, len(content))}
    quarantined = 0
    for cut in cuts:
        decoded = decode_bytes(content[:cut])
        assert (decoded.pixels is None) == bool(decoded.reason)
        if decoded.pixels is None:
            quarantined += 1
        else:  # the cut took a trailer and no pixel
            np.testing.assert_array_equal(decoded.pixels, whole)
    # Of a PNG, eight cuts take bytes after its pixels.
    assert quarantined >= len(cuts) - 9


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_no_damage_raises(name: str) -> None:
    content = encoded(photograph(), name)
    random = np.random.default_rng(0)
    reasons = 0
    for _ in range(100):
        damaged = np.frombuffer(content, np.uint8).copy()
        damaged[random.integers(0, min(400, len(content)), 4)] = random.integers(0, 256, 4)
        decoded = decode_bytes(damaged.tobytes())
        assert (decoded.pixels is None) == bool(decoded.reason)
        reasons += decoded.pixels is None
    assert reasons
