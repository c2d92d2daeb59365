"""Every picture is turned upright and cropped to the shape of the dataset, and none is stretched."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.data.encoded import decode_bytes, encoded, photograph

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


# What of the quadrants a square, a wide and a tall shape keep.
CROPS = {(8, 8): np.s_[2:10, :], (4, 8): np.s_[4:8, :], (12, 4): np.s_[:, 2:6]}


@pytest.mark.parametrize("size", CROPS)
@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(("name", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_exif_orientation_is_undone(
    mode: str, name: str, options: dict, orientation: int, size: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](quadrants()))).convert(mode)
    turned = decode_bytes(encoded(stored, name, exif=exif, **options), size)
    np.testing.assert_array_equal(turned.pixels, quadrants()[CROPS[size]])


@pytest.mark.parametrize("size", CROPS)
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_of_a_large_jpeg_is_undone(orientation: int, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](quadrants().repeat(32, 0).repeat(32, 1))))
    turned = decode_bytes(encoded(stored, "JPEG", exif=exif, quality=95, subsampling=0), size)
    # Away from the edges of the quadrants, which the filter softens.
    height, width = size
    inner = np.ix_([*range(height // 2 - 1), *range(height // 2 + 1, height)], [0, width - 1])
    assert np.abs(turned.pixels[inner].astype(int) - quadrants()[CROPS[size]][inner]).max() <= 3


def gradients(height: int, width: int) -> np.ndarray:
    """Red grows from left to right and green from top to bottom, by 10 a pixel."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0] = 10 * np.arange(width)
    picture[..., 1] = 10 * np.arange(height)[:, None]
    return picture


@pytest.mark.parametrize(
    ("size", "kept"),
    [
        ((4, 4), np.s_[:, 4:8]),
        ((4, 8), np.s_[:, 2:10]),
        ((4, 2), np.s_[:, 5:7]),
        ((4, 12), np.s_[:, :]),
        ((1, 12), None),
        ((2, 12), np.s_[1:3, :]),
    ],
)
@pytest.mark.parametrize("tall", [False, True])
def test_the_middle_in_the_shape_of_the_result_is_kept(size: tuple[int, int], kept, tall: bool) -> None:
    picture = gradients(4, 12)
    # One row of four lies between the second and the third.
    expected = np.rint(picture[1:3].mean(axis=0, keepdims=True)).astype(np.uint8) if kept is None else picture[kept]
    if tall:
        picture, expected, size = picture.swapaxes(0, 1), expected.swapaxes(0, 1), size[::-1]
    content = encoded(Image.fromarray(np.ascontiguousarray(picture)), "PNG")
    np.testing.assert_array_equal(decode_bytes(content, size).pixels, expected)


@pytest.mark.parametrize(
    ("size", "first", "step"),
    [
        # Two pixels become one, whose middle lies between them.
        ((6, 12), (5, 5), (20, 20)),
        # Columns 6 to 17 of the 24, rows 3 to 8 of the 12.
        ((6, 6), (65, 5), (20, 20)),
        ((3, 12), (5, 35), (20, 20)),
        # Three pixels become one.
        ((4, 8), (10, 10), (30, 30)),
        ((2, 8), (10, 40), (30, 30)),
    ],
)
def test_nothing_is_stretched(size: tuple[int, int], first: tuple[int, int], step: tuple[int, int]) -> None:
    pixels = decode_bytes(encoded(Image.fromarray(gradients(12, 24)), "PNG"), size).pixels.astype(int)
    columns, rows = (first[axis] + step[axis] * np.arange(size[1 - axis]) for axis in (0, 1))
    # Where the filter reaches over the border it leans inwards.
    assert np.abs(pixels[..., 0] - columns).max() <= 2
    assert np.abs(pixels[..., 1] - rows[:, None]).max() <= 2
    np.testing.assert_array_equal(pixels[:, 2:-2, 0], np.broadcast_to(columns[2:-2], (size[0], size[1] - 4)))


def test_a_smaller_image_is_enlarged_until_it_covers_the_result() -> None:
    content = encoded(Image.fromarray(gradients(4, 4)), "PNG")
    pixels = decode_bytes(content, (8, 16)).pixels.astype(int)
    # Four pixels of the result to one: the middle two rows of the image, whole columns.
    assert np.abs(pixels[:, 2:-2, 0] - (10 * (np.arange(2, 14) + 0.5) / 4 - 5)).max() <= 2
    assert np.abs(pixels[..., 1] - (10 * (np.arange(8) + 0.5) / 4 + 5)[:, None]).max() <= 2


@pytest.mark.parametrize("size", [(3, 7), (7, 3), (5, 11), (13, 8), (1, 9), (64, 48)])
@pytest.mark.parametrize("image", [(1, 1), (10, 3), (3, 10), (7, 7), (101, 67), (68, 101)])
def test_any_image_fits_any_shape(image: tuple[int, int], size: tuple[int, int]) -> None:
    decoded = decode_bytes(encoded(photograph(*image), "PNG"), size)
    assert decoded.reason is None
    assert decoded.pixels.shape == (*size, 3)


def test_a_pattern_finer_than_the_result_becomes_its_mean() -> None:
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    pixels = decode_bytes(encoded(Image.fromarray(board), "PNG"), (8, 8), channels=1).pixels
    assert np.abs(pixels.astype(int) - 127.5).max() <= 1.5


def test_a_jpeg_of_any_size_is_reduced_to_what_the_whole_one_shows() -> None:
    random = np.random.default_rng(0)
    for _ in range(100):
        width, height, side = (int(each) for each in (*random.integers(1, 1000, 2), random.choice([4, 8, 16, 32])))
        # A slope is linear, so no filter changes it, and a part that is off by a pixel would.
        slope = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 120, width)).astype(np.uint8)
        jpeg = encoded(Image.fromarray(slope), "JPEG", quality=95)
        whole = encoded(Image.open(io.BytesIO(jpeg)), "PNG")
        one, other = (decode_bytes(each, (side, side), 1) for each in (jpeg, whole))
        assert one.reason is None, (width, height, side)
        assert np.abs(one.pixels.astype(int) - other.pixels).max() <= 3, (width, height, side)


@pytest.mark.parametrize("shape", [(512, 512), (520, 384), (391, 517), (897, 900)])
@pytest.mark.parametrize("size", [(16, 16), (8, 16), (20, 12)])
def test_a_reduced_jpeg_looks_like_the_whole_one(size: tuple[int, int], shape: tuple[int, int]) -> None:
    jpeg = encoded(photograph(*shape), "JPEG", quality=90)
    whole = encoded(Image.open(io.BytesIO(jpeg)), "PNG")
    difference = decode_bytes(jpeg, size).pixels.astype(int) - decode_bytes(whole, size).pixels
    assert np.abs(difference).mean() < 1
