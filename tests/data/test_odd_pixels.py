"""Pictures that are stored in rare ways look as a person would see them, or are refused with a reason."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms
from skimage import color as skimage_color

from diffusion_core.data.color import SRGB, from_gamma, srgb
from tests.data.encoded import decode_bytes, encoded, photograph

RAMP = np.linspace(0, 1, 64)


def ramp(top: int) -> np.ndarray:
    return np.tile(np.rint(RAMP * top).astype(np.uint16), (64, 1))


def tiff(samples: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, **{"photometric": "minisblack", **options})
    return buffer.getvalue()


def png(samples: np.ndarray, kind: int, bits: int = 8, **chunks: bytes) -> bytes:
    """A PNG of these samples (H, W, C), with further chunks; kinds are 0 (gray), 2 (RGB), 4 (gray, alpha), 6 (RGBA)."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    height, width = samples.shape[:2]
    packed = samples.astype(">u2" if bits == 16 else np.uint8).reshape(height, -1)
    if bits < 8:
        packed = np.packbits(np.unpackbits(packed[..., None], axis=2)[..., -bits:].reshape(height, -1), axis=1)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    extra = b"".join(chunk(name.encode(), body) for name, body in chunks.items())
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def right_edge(content: bytes, **options: object) -> int:
    return int(decode_bytes(content, (32, 32), 1, **options).pixels[16, -1, 0])


# What 64 columns of a ramp become in 32: the last lies between the last two.
EDGE = round(255 * RAMP[-2:].mean())


@pytest.mark.parametrize("compression", [None, "deflate", "lzw"])
def test_16_bits_of_a_tiff_are_read_by_their_range(compression: str | None) -> None:
    options = {"compression": compression}
    assert abs(right_edge(tiff(ramp(65535), **options)) - EDGE) <= 1
    assert abs(right_edge(tiff(ramp(65535), photometric="miniswhite", **options)) - (255 - EDGE)) <= 1
    # 12 bits stored as 16, as cameras do.
    assert right_edge(tiff(ramp(4095), **options)) == round(EDGE / 16)
    assert abs(right_edge(tiff(ramp(4095), **options), sample_range="data") - EDGE) <= 1


@pytest.mark.parametrize("code", ["SMaxSampleValue", "MaxSampleValue"])
def test_a_tiff_may_say_what_is_white(code: str) -> None:
    number = {"SMaxSampleValue": 341, "MaxSampleValue": 281}[code]
    tags = [(number, "H", 1, 4095, True)]
    assert abs(right_edge(tiff(ramp(4095), extratags=tags)) - EDGE) <= 1
    # A file whose samples exceed what it says is read by its type.
    assert abs(right_edge(tiff(ramp(65535), extratags=tags)) - EDGE) <= 1


def test_12_bits_of_a_tiff_are_12_bits() -> None:
    assert abs(right_edge(tiff(ramp(4095), bitspersample=12)) - EDGE) <= 1


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "deflate"])
def test_16_bit_planes_of_a_tiff_are_colours(planar: str, compression: str | None) -> None:
    samples = np.broadcast_to(np.uint16([64507, 33924, 1028]), (8, 8, 3))
    stored = np.moveaxis(samples, -1, 0) if planar == "separate" else samples
    content = tiff(np.ascontiguousarray(stored), photometric="rgb", planarconfig=planar, compression=compression)
    np.testing.assert_array_equal(decode_bytes(content).pixels[0, 0], [251, 132, 4])


@pytest.mark.parametrize(("kind", "premultiplied"), [("unassalpha", 1.0), ("assocalpha", 0.5)])
def test_alpha_of_16_bits_is_kept(kind: str, premultiplied: float) -> None:
    colors = np.broadcast_to(np.array([65535, 32768, 0]) * premultiplied, (8, 8, 3)).astype(np.uint16)
    samples = np.dstack([colors, np.full((8, 8), 32768, np.uint16)])
    content = tiff(samples, photometric="rgb", extrasamples=[kind])
    np.testing.assert_allclose(decode_bytes(content, channels=4).pixels[0, 0], [255, 128, 0, 128], atol=2)
    np.testing.assert_allclose(decode_bytes(content).pixels[0, 0], [255, 191, 127], atol=2)


def test_dark_images_of_more_than_8_bits_are_known() -> None:
    samples = np.random.default_rng(0).integers(100, 3400, (40, 40)).astype(np.uint16)
    assert decode_bytes(tiff(samples)).used == pytest.approx(3399 / 65535, rel=0.01)
    assert decode_bytes(tiff(samples), sample_range="data").used == pytest.approx(3399 / 4095, rel=0.01)
    assert decode_bytes(encoded(photograph(), "PNG")).used is None


def test_32_bits_and_signed_samples_have_no_agreed_range() -> None:
    for samples in (ramp(4095).astype(np.uint32), ramp(4095).astype(np.int16), ramp(1).astype(np.float32)):
        assert "no agreed range" in decode_bytes(tiff(samples)).reason


@pytest.mark.parametrize(
    ("content", "rgba"),
    [
        (png(np.full((4, 4, 1), 1000), 0, 16, tRNS=struct.pack(">H", 1000)), (0, 0, 0, 0)),
        (png(np.full((4, 4, 1), 1001), 0, 16, tRNS=struct.pack(">H", 1000)), (4, 4, 4, 255)),
        (png(np.full((4, 4, 3), (1, 2, 3)), 2, 16, tRNS=struct.pack(">HHH", 1, 2, 3)), (0, 0, 0, 0)),
        (png(np.full((4, 4, 3), (1, 2, 4)), 2, 16, tRNS=struct.pack(">HHH", 1, 2, 3)), (0, 0, 0, 255)),
        (png(np.full((4, 4, 3), (10, 20, 30)), 2, 8, tRNS=struct.pack(">HHH", 10, 20, 30)), (0, 0, 0, 0)),
        (png(np.full((4, 8, 1), 1), 0, 1, tRNS=struct.pack(">H", 1)), (0, 0, 0, 0)),
        (png(np.full((4, 4, 1), 2), 0, 2, tRNS=struct.pack(">H", 2)), (0, 0, 0, 0)),
        (png(np.full((4, 4, 1), 1), 0, 2, tRNS=struct.pack(">H", 2)), (85, 85, 85, 255)),
        (png(np.full((4, 2, 1), 10), 0, 4, tRNS=struct.pack(">H", 10)), (0, 0, 0, 0)),
        (png(np.full((4, 4, 2), (65535, 32768)), 4, 16), (255, 255, 255, 128)),
        (png(np.full((4, 4, 4), (65535, 0, 257, 65535)), 6, 16), (255, 0, 1, 255)),
    ],
    ids=["gray 16", "other gray 16", "RGB 16", "other RGB 16", "RGB 8", "1 bit", "2 bits", "other 2 bits", "4 bits",
         "gray and alpha 16", "RGBA 16"],
)  # fmt: skip
def test_transparency_of_a_png_has_every_depth(content: bytes, rgba: tuple) -> None:
    np.testing.assert_allclose(decode_bytes(content, channels=4).pixels, np.broadcast_to(rgba, (2, 2, 4)), atol=1)
    on_white = np.array(rgba[:3]) * (rgba[3] / 255) + 255 - rgba[3]
    np.testing.assert_allclose(decode_bytes(content).pixels[0, 0], on_white, atol=2)


def test_half_of_a_16_bit_png_is_transparent() -> None:
    samples = np.zeros((32, 32, 1))
    samples[:, 16:] = 1000
    content = png(samples, 0, 16, tRNS=struct.pack(">H", 1000))
    np.testing.assert_array_equal(decode_bytes(content, (32, 32), 1).pixels[0, [0, -1], 0], [0, 255])
    np.testing.assert_array_equal(decode_bytes(content, (32, 32), 4).pixels[0, [0, -1], 3], [255, 0])


def test_lab_is_the_same_picture_in_gray_and_rgb() -> None:
    lab = np.uint8([[[136, 20, 30]]]).repeat(8, 0).repeat(8, 1)
    content = tiff(lab, photometric="cielab")
    # With its own white, so that white stays white as by a profile.
    expected = skimage_color.lab2rgb([136 / 2.55, 20, 30], illuminant="D65") * 255
    np.testing.assert_allclose(decode_bytes(content).pixels[0, 0], expected, atol=4)
    gray = decode_bytes(content, channels=1)
    assert gray.reason is None
    np.testing.assert_allclose(gray.pixels[0, 0, 0], expected @ [0.299, 0.587, 0.114], atol=4)


@pytest.mark.parametrize("mode", sorted({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"}))
def test_every_mode_is_one_picture_in_gray_rgb_and_rgba(mode: str) -> None:
    image = photograph().convert("RGB")
    # Pillow makes PA from LA alone.
    image = image.quantize() if mode == "P" else (image.convert("LA") if mode == "PA" else image).convert(mode)
    plain = srgb(image, None)
    assert plain.mode in ("L", "LA", "RGB", "RGBA")
    np.testing.assert_allclose(np.asarray(plain.convert("RGB"), int), np.asarray(image.convert("RGB"), int), atol=1)


def display_p3() -> bytes:
    """A profile with the primaries of Display P3 and the curve of sRGB, as ICC.1:2010 describes it."""

    def fixed(values: np.ndarray) -> bytes:
        return struct.pack(f">{len(values)}i", *np.rint(np.asarray(values) * 65536).astype(int))

    columns = [(0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)]
    xyz = [b"XYZ \0\0\0\0" + fixed(each) for each in [(0.9642, 1.0, 0.8249), *columns]]
    curve = b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + fixed([2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045])
    names = (b"wtpt", b"rXYZ", b"gXYZ", b"bXYZ", b"rTRC", b"gTRC", b"bTRC")
    tags = dict(zip(names, [*xyz, curve, curve, curve], strict=True))
    offset = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", offset + len(body), len(content))
        body += content + b"\0" * (-len(content) % 4)
    size = offset + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"\0" * 4, 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    header += b"\0" * 12 + b"acsp" + b"\0" * 28 + fixed([0.9642, 1.0, 0.8249])
    return header.ljust(128, b"\0") + table + body


def test_a_profile_is_converted() -> None:
    # Red of sRGB 232, 19, 29 in P3 lies on the edge of sRGB.
    image = Image.new("RGB", (8, 8), (232, 19, 29))
    content = encoded(image, "PNG", icc_profile=display_p3())
    np.testing.assert_allclose(decode_bytes(content).pixels[0, 0], [253, 0, 0], atol=2)
    np.testing.assert_array_equal(decode_bytes(content, color_profile="ignore").pixels[0, 0], [232, 19, 29])
    with_alpha = encoded(Image.new("RGBA", (8, 8), (232, 19, 29, 128)), "PNG", icc_profile=display_p3())
    np.testing.assert_allclose(decode_bytes(with_alpha, channels=4).pixels[0, 0], [253, 0, 0, 128], atol=2)
    jpeg = encoded(
        Image.new("RGB", (8, 8), (232, 19, 29)), "JPEG", quality=100, subsampling=0, icc_profile=display_p3()
    )
    np.testing.assert_allclose(decode_bytes(jpeg).pixels[0, 0], [253, 0, 0], atol=3)


def test_a_profile_that_is_srgb_or_broken_or_of_other_pixels_changes_nothing() -> None:
    image = photograph(8, 8)
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (own, b"no profile", display_p3()[:200]):
        content = encoded(image, "PNG", icc_profile=profile)
        np.testing.assert_array_equal(decode_bytes(content, (8, 8)).pixels, np.asarray(image))
    gray = encoded(image.convert("L"), "PNG", icc_profile=own)
    np.testing.assert_array_equal(decode_bytes(gray, (8, 8), 1).pixels[..., 0], np.asarray(image.convert("L")))


def test_gamma_of_a_png_is_converted() -> None:
    linear = np.linspace(0, 1, 256)
    expected = np.rint(255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055))
    samples = np.arange(256).reshape(16, 16, 1)
    for kind, channels in ((0, 1), (2, 3)):
        content = png(np.repeat(samples, channels, 2), kind, gAMA=struct.pack(">I", 100_000))
        np.testing.assert_array_equal(decode_bytes(content, (16, 16), 1).pixels.ravel(), expected)
        assert (decode_bytes(content, (16, 16), 1, color_profile="ignore").pixels.ravel() == samples.ravel()).all()
    # In 16 bits, the dark ones keep their differences.
    deep = png(np.arange(256).reshape(16, 16, 1), 0, 16, gAMA=struct.pack(">I", 100_000))
    assert len(np.unique(decode_bytes(deep, (16, 16), 1).pixels)) == 14
    # sRGB, as nearly all files with gAMA say.
    usual = png(samples, 0, gAMA=struct.pack(">I", 45455))
    np.testing.assert_array_equal(decode_bytes(usual, (16, 16), 1).pixels.ravel(), samples.ravel())


def test_primaries_of_a_png_are_converted_as_those_of_a_profile() -> None:
    p3 = (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
    random = np.random.default_rng(0).random((20, 20, 3))
    np.testing.assert_allclose(from_gamma(random, 1 / 2.2, SRGB)[..., 1], from_gamma(random[..., 1:2], 1 / 2.2)[..., 0])
    # White stays white, whatever the white is.
    for primaries in (p3, (0.3457, 0.3585, *p3[2:])):
        np.testing.assert_allclose(from_gamma(np.ones((1, 1, 3)), 0.5, primaries), 1.0, atol=1e-6)
    chunk = struct.pack(">8I", *(round(each * 100_000) for each in p3))
    content = png(np.full((8, 8, 3), (232, 19, 29)), 2, gAMA=struct.pack(">I", 45455), cHRM=chunk)
    np.testing.assert_allclose(decode_bytes(content).pixels[0, 0], [253, 0, 0], atol=2)


def without_adobe(jpeg: bytes) -> bytes:
    at = jpeg.index(b"\xff\xee")
    return jpeg[:at] + jpeg[at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big") :]


def test_cmyk_without_a_word_on_its_inks_is_refused() -> None:
    jpeg = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    np.testing.assert_allclose(decode_bytes(jpeg).pixels[0, 0], [255, 0, 0], atol=3)
    assert "CMYK without Adobe's marker" in decode_bytes(without_adobe(jpeg)).reason


@pytest.mark.parametrize("progressive", [False, True])
def test_half_of_a_jpeg_is_damaged(progressive: bool) -> None:
    jpeg = encoded(photograph(640, 480), "JPEG", progressive=progressive)
    for size in ((480, 640), (16, 16)):
        assert decode_bytes(jpeg, size).reason is None
        assert decode_bytes(jpeg[: len(jpeg) // 2] + b"\xff\xd9", size).reason.startswith("damaged: ")


def test_most_of_what_is_overwritten_in_a_jpeg_is_damaged() -> None:
    """Bits may be flipped to others that are as good, which nothing can notice."""
    jpeg = encoded(photograph(640, 480), "JPEG")
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        at = int(random.integers(len(jpeg) // 4, len(jpeg) - 300))
        refused += decode_bytes(jpeg[:at] + bytes(200) + jpeg[at + 200 :]).reason is not None
    assert refused >= 80


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\1\x12\0\3", b"Exif\0\0" + bytes(40)]
)
def test_broken_exif_costs_no_good_pixels(exif: bytes) -> None:
    image = photograph(8, 8)
    jpeg, broken = (encoded(image, "JPEG", **options) for options in ({}, {"exif": b"Exif\0\0" + exif}))
    assert len(broken) > len(jpeg)
    np.testing.assert_array_equal(decode_bytes(broken, (8, 8)).pixels, decode_bytes(jpeg, (8, 8)).pixels)


def test_the_most_pixels_are_a_setting() -> None:
    content = encoded(photograph(64, 48), "PNG")
    assert decode_bytes(content, max_pixels=64 * 48).reason is None
    reason = decode_bytes(content, max_pixels=64 * 48 - 1).reason
    assert reason == "it has 3072 pixels, and prepare.max_pixels is 3071"


@pytest.mark.parametrize("name", ["AVIF", "JPEG2000"])
def test_newer_formats_come_in(name: str) -> None:
    image = photograph(64, 48)
    content = encoded(image, name, **({"quality": 95} if name == "AVIF" else {}))
    np.testing.assert_allclose(decode_bytes(content, (48, 64)).pixels.astype(int), np.asarray(image, int), atol=60)
    difference = decode_bytes(content, (48, 64)).pixels.astype(int) - np.asarray(image)
    assert np.abs(difference).mean() < 4
