"""Every file becomes known pixels or a reason."""

import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from diffusion_core.data.decode import decode

# What a camera stores, made from the upright picture; the EXIF specification (2.3, tag 274) names the side of the
# picture that row 0 and column 0 hold.
STORED = {
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright, 2).swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


def quadrants() -> np.ndarray:
    """12 x 8 pixels that look different from each of the eight sides."""
    picture = np.zeros((12, 8, 3), np.uint8)
    picture[:6, :4] = 255, 0, 0
    picture[:6, 4:] = 0, 255, 0
    picture[6:, :4] = 0, 0, 255
    return picture


def photograph(width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(data.astronaut()).resize((width, height))


def encoded(image: Image.Image, name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def decode_bytes(folder: Path, content: bytes, image_size: int = 2, channels: int = 3):
    file = folder / "image"
    file.write_bytes(content)
    return decode(file, image_size, channels)


def png(width: int, height: int) -> bytes:
    """A PNG whose header promises an RGB image and whose body holds a hundred bytes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(("name", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_exif_orientation_is_undone(tmp_path: Path, mode: str, name: str, options: dict, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](quadrants()))).convert(mode)
    turned = decode_bytes(tmp_path, encoded(stored, name, exif=exif, **options), 8)
    np.testing.assert_array_equal(turned.pixels, quadrants()[2:10])


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_of_a_large_jpeg_is_undone(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](quadrants().repeat(32, 0).repeat(32, 1))))
    turned = decode_bytes(tmp_path, encoded(stored, "JPEG", exif=exif, quality=95, subsampling=0), 8)
    # Away from the edges of the quadrants, which the filter softens.
    inner = np.ix_([0, 1, 6, 7], [0, 1, 6, 7])
    assert np.abs(turned.pixels[inner].astype(int) - quadrants()[2:10][inner]).max() <= 3


def palette(**options: object) -> bytes:
    image = Image.new("P", (4, 4))
    image.putpalette([10, 20, 30])
    return encoded(image, "PNG", **options)


def solid(name: str, mode: str, color: object, **options: object) -> bytes:
    return encoded(Image.new(mode, (4, 4), color), name, **options)


def gray16(name: str, value: int) -> bytes:
    return encoded(Image.fromarray(np.full((4, 4), value, np.uint16)), name)


@pytest.mark.parametrize(
    ("content", "mode", "rgb", "gray"),
    [
        # 0.299 R + 0.587 G + 0.114 B = 59.8 + 58.7 + 5.7
        pytest.param(solid("PNG", "RGB", (200, 100, 50)), "RGB", (200, 100, 50), 124, id="RGB"),
        pytest.param(solid("PNG", "1", 1), "1", (255, 255, 255), 255, id="bilevel"),
        pytest.param(solid("JPEG", "CMYK", (0, 255, 255, 0), quality=95), "CMYK", (255, 0, 0), 76, id="CMYK JPEG"),
        pytest.param(solid("TIFF", "CMYK", (255, 0, 255, 0)), "CMYK", (0, 255, 0), 150, id="CMYK TIFF"),
        pytest.param(gray16("PNG", 65535), "I;16", (255, 255, 255), 255, id="16-bit white"),
        pytest.param(gray16("PNG", 300), "I;16", (1, 1, 1), 1, id="16-bit dark"),
        pytest.param(gray16("TIFF", 32896), "I;16", (128, 128, 128), 128, id="16-bit TIFF"),
        pytest.param(palette(), "P", (10, 20, 30), 18, id="palette"),
        pytest.param(palette(transparency=0), "P", (255, 255, 255), 255, id="palette, transparent"),
        # 255 + (c - 255) * 128 / 255
        pytest.param(palette(transparency=b"\x80"), "P", (132, 137, 142), 136, id="palette, half transparent"),
        pytest.param(solid("PNG", "LA", (100, 128)), "LA", (177, 177, 177), 177, id="LA"),
        pytest.param(solid("PNG", "RGBA", (200, 0, 0, 128)), "RGBA", (227, 127, 127), 157, id="RGBA"),
        pytest.param(solid("PNG", "RGBA", (9, 9, 9, 0)), "RGBA", (255, 255, 255), 255, id="RGBA, transparent"),
        pytest.param(solid("PNG", "L", 7, transparency=7), "L", (255, 255, 255), 255, id="transparent gray"),
        pytest.param(solid("WEBP", "RGBA", (200, 0, 0, 128), lossless=True), "RGBA", (227, 127, 127), 157, id="WebP"),
        pytest.param(solid("BMP", "RGB", (200, 100, 50)), "RGB", (200, 100, 50), 124, id="BMP"),
    ],
)
def test_every_mode_becomes_gray_and_rgb(tmp_path: Path, content: bytes, mode: str, rgb: tuple, gray: int) -> None:
    in_color, in_gray = decode_bytes(tmp_path, content), decode_bytes(tmp_path, content, channels=1)
    np.testing.assert_array_equal(in_color.pixels, np.broadcast_to(np.uint8(rgb), (2, 2, 3)))
    np.testing.assert_array_equal(in_gray.pixels, np.full((2, 2, 1), gray, np.uint8))
    assert (in_color.width, in_color.height, in_color.mode, in_color.reason) == (4, 4, mode, None)
    assert in_color.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_counts(tmp_path: Path, name: str) -> None:
    first, second = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    options = {"lossless": True} if name == "WEBP" else {}
    content = encoded(first, name, save_all=True, append_images=[second], **options)
    np.testing.assert_array_equal(decode_bytes(tmp_path, content).pixels[0, 0], [255, 0, 0])


def test_the_square_in_the_middle_is_kept(tmp_path: Path) -> None:
    picture = np.zeros((4, 12, 3), np.uint8)
    picture[:, 4:8] = np.arange(48).reshape(4, 4, 3)
    content = encoded(Image.fromarray(picture), "PNG")
    np.testing.assert_array_equal(decode_bytes(tmp_path, content, 4).pixels, picture[:, 4:8])


def test_a_pattern_finer_than_the_result_becomes_its_mean(tmp_path: Path) -> None:
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    pixels = decode_bytes(tmp_path, encoded(Image.fromarray(board), "PNG"), 8, channels=1).pixels
    assert np.abs(pixels.astype(int) - 127.5).max() <= 1.5


@pytest.mark.parametrize("size", [(512, 512), (520, 384), (391, 517), (897, 900)])
def test_a_reduced_jpeg_looks_like_the_whole_one(tmp_path: Path, size: tuple[int, int]) -> None:
    jpeg = encoded(photograph(*size), "JPEG", quality=90)
    whole = encoded(Image.open(io.BytesIO(jpeg)), "PNG")
    difference = decode_bytes(tmp_path, jpeg, 16).pixels.astype(int) - decode_bytes(tmp_path, whole, 16).pixels
    assert np.abs(difference).mean() < 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "the file is empty", id="zero bytes"),
        pytest.param(b"no image at all", "not one of BMP, GIF, JPEG, PNG, TIFF, WEBP", id="text"),
        pytest.param(encoded(photograph(), "EPS"), "not one of BMP, GIF, JPEG, PNG, TIFF, WEBP", id="EPS"),
        pytest.param(encoded(photograph(), "PPM"), "not one of BMP, GIF, JPEG, PNG, TIFF, WEBP", id="PPM"),
        pytest.param(png(60_000, 60_000), "exceeds limit of", id="bomb"),
        pytest.param(png(9_460, 9_460), "exceeds limit of", id="bomb just above the limit"),
        pytest.param(png(100, 100), "truncated", id="header without body"),
        pytest.param(solid("TIFF", "F", 0.5), "no agreed range", id="float"),
        pytest.param(solid("TIFF", "I", 70_000), "no agreed range", id="32-bit"),
        pytest.param(encoded(photograph(), "PNG").replace(b"IDAT", b"IDAt", 1), "", id="damaged chunk"),
    ],
)
def test_what_does_not_decode_is_told(tmp_path: Path, content: bytes, reason: str) -> None:
    decoded = decode_bytes(tmp_path, content)
    assert decoded.pixels is None
    assert reason in decoded.reason
    assert decoded.sha256 == hashlib.sha256(content).hexdigest()
    assert decode_bytes(tmp_path, content) == decoded


def test_a_flipped_byte_in_a_png_is_found(tmp_path: Path) -> None:
    content = bytearray(encoded(photograph(), "PNG"))
    for position in range(60, len(content) - 12, 400):
        damaged = bytearray(content)
        damaged[position] ^= 1
        assert decode_bytes(tmp_path, bytes(damaged)).reason, position


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
def test_a_truncated_file_never_loses_a_pixel_in_silence(tmp_path: Path, name: str, options: dict) -> None:
    content = encoded(photograph(), name, **options)
    whole = decode_bytes(tmp_path, content).pixels
    cuts = {*range(0, len(content), len(content) // 40), *range(len(content) - 8, len(content))}
    quarantined = 0
    for cut in cuts:
        decoded = decode_bytes(tmp_path, content[:cut])
        assert (decoded.pixels is None) == bool(decoded.reason)
        if decoded.pixels is None:
            quarantined += 1
        else:  # the cut took a trailer and no pixel
            np.testing.assert_array_equal(decoded.pixels, whole)
    assert quarantined >= len(cuts) - 5


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_no_damage_raises(tmp_path: Path, name: str) -> None:
    content = encoded(photograph(), name)
    random = np.random.default_rng(0)
    reasons = 0
    for _ in range(100):
        damaged = np.frombuffer(content, np.uint8).copy()
        damaged[random.integers(0, min(400, len(content)), 4)] = random.integers(0, 256, 4)
        decoded = decode_bytes(tmp_path, damaged.tobytes())
        assert (decoded.pixels is None) == bool(decoded.reason)
        reasons += decoded.pixels is None
    assert reasons


def test_a_file_that_cannot_be_read_is_no_bad_image(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        decode(tmp_path / "missing.png", 2, 3)
