"""Each kind of crop keeps the parts that it says, whole and undistorted where it says so."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from diffusion_core.data.crops import Middle, Pad, Random, Stretch
from diffusion_core.data.decode import decode
from diffusion_core.data.decoding import Decoding
from tests.data.encoded import encoded, photograph

DIGEST = hashlib.sha256(b"a file").digest()
EXTENTS = [(30.0, 20.0), (20.0, 30.0), (64.0, 64.0), (1000.0, 3.0), (17.5, 9.25)]
SHAPES = [(8, 8), (16, 8), (5, 7)]


def parts(image, size, *, channels=3, **options):
    """The pixels of all parts of a picture, saved without loss."""
    return [part.pixels for part in decode(encoded(image, "PNG"), Decoding(size, channels, **options)).parts]


@pytest.mark.parametrize("extent", EXTENTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_middle_is_the_largest_centred_part_of_the_aspect_ratio(extent, shape):
    ((left, top, right, bottom),) = Middle().boxes(extent, shape)
    assert (right - left) / (bottom - top) == pytest.approx(shape[0] / shape[1])
    assert (left + right, top + bottom) == pytest.approx(extent)
    assert right - left == pytest.approx(extent[0]) or bottom - top == pytest.approx(extent[1])
    assert min(left, top) >= 0.0


@pytest.mark.parametrize("extent", EXTENTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_random_parts_lie_in_the_picture_and_have_the_aspect_ratio(extent, shape):
    ((left, _, right, _),) = Middle().boxes(extent, shape)
    for box in Random(count=50, smallest=0.3).boxes(extent, shape, DIGEST):
        width, height = box[2] - box[0], box[3] - box[1]
        assert min(box[:2]) >= 0.0
        assert box[2] <= extent[0] + 1e-9
        assert box[3] <= extent[1] + 1e-9
        assert width / height == pytest.approx(shape[0] / shape[1])
        assert 0.3 - 1e-9 <= width / (right - left) <= 1.0 + 1e-9


def test_random_parts_depend_on_the_file_and_the_seed_alone():
    extent, shape = (40.0, 30.0), (8, 8)
    crop = Random(count=3, seed=1)
    assert crop.boxes(extent, shape, DIGEST) == crop.boxes(extent, shape, DIGEST)
    # More parts begin with the same ones.
    assert Random(count=5, seed=1).boxes(extent, shape, DIGEST)[:3] == crop.boxes(extent, shape, DIGEST)
    others = [Random(count=3, seed=2).boxes(extent, shape, DIGEST), crop.boxes(extent, shape, DIGEST[::-1])]
    assert all(other != crop.boxes(extent, shape, DIGEST) for other in others)


def test_random_parts_are_uniform():
    boxes = np.array(Random(count=100, smallest=0.5).boxes((100.0, 100.0), (8, 8), DIGEST))
    shares = (boxes[:, 2] - boxes[:, 0]) / 100.0
    places = boxes[:, 0] / (100.0 - 100.0 * shares)
    # The mean of 100 uniform numbers lies within 4 standard deviations of theirs.
    assert abs(shares.mean() - 0.75) < 4 * 0.5 / np.sqrt(12 * 100)
    assert abs(places.mean() - 0.5) < 4 / np.sqrt(12 * 100)


def test_several_parts_of_an_image_are_those_of_its_boxes():
    picture = photograph(60, 40)
    crop = Random(count=4, smallest=0.4, seed=3)
    content = encoded(picture, "PNG")
    found = [part.pixels for part in decode(content, Decoding((8, 8), 3, crop=crop)).parts]
    boxes = crop.boxes((60.0, 40.0), (8, 8), hashlib.sha256(content).digest())
    wanted = [np.asarray(picture.resize((8, 8), Image.Resampling.BICUBIC, box=box)) for box in boxes]
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(("across", "down"), [(40, 20), (20, 40)])
def test_padding_keeps_the_whole_picture_on_white(across, down):
    picture = Image.new("RGB", (across, down), (10, 20, 30))
    (pixels,) = parts(picture, (16, 16), crop=Pad())
    border = np.full((4, 16, 3), 255) if across > down else np.full((16, 4, 3), 255)
    axis = 0 if across > down else 1
    first, middle, last = np.split(pixels, [4, 12], axis=axis)
    np.testing.assert_array_equal(first, border)
    np.testing.assert_array_equal(last, border)
    assert (middle == (10, 20, 30)).all()


def test_padding_is_transparent_for_rgba_and_white_for_gray():
    picture = Image.new("RGB", (40, 20), (10, 20, 30))
    (pixels,) = parts(picture, (16, 16), channels=4, crop=Pad())
    assert (pixels[:4] == 0).all()
    assert (pixels[4:12] == (10, 20, 30, 255)).all()
    (gray,) = parts(picture, (16, 16), channels=1, crop=Pad())
    assert (gray[:4] == 255).all()
    assert gray[4:12].max() < 30


@pytest.mark.parametrize("shape", [(1000, 1), (1, 1000)])
def test_a_line_that_is_padded_keeps_a_pixel(shape):
    (pixels,) = parts(Image.new("L", shape, 0), (8, 8), channels=1, crop=Pad())
    assert (pixels == 0).sum() == 8


def test_stretching_keeps_all_four_corners():
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:10, :20] = 255
    (found,) = parts(Image.fromarray(pixels), (2, 2), crop=Stretch())
    assert found[0, 0].min() > 200
    assert max(found[0, 1].max(), found[1, 0].max(), found[1, 1].max()) < 50
    wanted = Image.fromarray(pixels).resize((2, 2), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(found, wanted)


def test_a_lying_picture_is_padded_upright():
    picture = Image.new("RGB", (40, 20), (10, 20, 30))
    exif = Image.Exif()
    exif[274] = 6
    content = encoded(picture, "PNG", exif=exif)
    (part,) = decode(content, Decoding((16, 16), 3, crop=Pad())).parts
    assert (part.pixels[:, 4:12] == (10, 20, 30)).all()
    assert (part.pixels[:, :4] == 255).all()


def linear(values):
    values = np.asarray(values, np.float64) / 255.0
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def test_black_and_white_lines_average_to_the_light_of_both():
    """Half the light of white is 188 of sRGB and not 128."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, ::2] = 255
    (found,) = parts(Image.fromarray(pixels), (4, 4), linear_light=True)
    assert (np.abs(found.astype(int) - 188) <= 2).all()
    # The control.
    (found,) = parts(Image.fromarray(pixels), (4, 4), linear_light=False)
    assert (np.abs(found.astype(int) - 128) <= 3).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_intensities_are_resized_as_an_independent_computation_does(mode):
    """The weights of Keys 1981 on a matrix, whose borders are as those of Pillow."""
    random = np.random.default_rng(0)
    channels = len(mode)
    pixels = random.integers(0, 256, (24, 24, channels), np.uint8)
    (found,) = parts(
        Image.fromarray(pixels[..., 0] if mode == "L" else pixels, mode), (6, 6), channels=channels, linear_light=True
    )
    light = linear(pixels[..., :3])
    alpha = pixels[..., 3:] / 255.0 if mode == "RGBA" else np.ones((24, 24, 1))
    planes = np.concatenate([light * alpha, alpha], axis=-1)
    weights = bicubic_weights(24, 6)
    small = np.einsum("yi,xj,ijc->yxc", weights, weights, planes)
    opacity = np.clip(small[..., -1:], 0.0, 1.0)
    values = np.clip(small[..., :-1] / np.where(opacity > 0, opacity, 1), 0.0, 1.0)
    values = np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055)
    wanted = np.rint(255 * np.concatenate([values, opacity], axis=-1))[..., :channels]
    assert np.abs(found - wanted).max() <= 1


def bicubic_weights(before, after):
    """Keys' cubic with a = -0.5, widened by the reduction (Keys 1981)."""
    scale = before / after
    centres = (np.arange(after) + 0.5) * scale
    x = np.abs((np.arange(before) + 0.5 - centres[:, None]) / scale)
    weights = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"min_size": 21}, "it has 40 x 20 pixels, and prepare.min_size is 21"),
        ({"max_aspect": 1.9}, "it has 40 x 20 pixels, and prepare.max_aspect is 1.9"),
        ({"min_size": 20, "max_aspect": 2.0}, None),
    ],
)
def test_small_and_long_pictures_are_left_out(options, reason):
    content = encoded(Image.new("RGB", (40, 20)), "PNG")
    assert decode(content, Decoding((8, 8), 3, **options)).reason == reason


@pytest.mark.parametrize("options", [{"count": 0}, {"count": 101}, {"smallest": 0.0}, {"smallest": 1.1}, {"seed": -1}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is "):
        Random(**options)


def test_a_reduced_jpeg_is_large_enough_for_the_smallest_part():
    """A part of an eighth of a large JPEG is as sharp as the same part of its pixels without loss."""
    picture = photograph(2000, 2000)
    content = encoded(picture, "JPEG", quality=95)
    crop = Random(count=6, smallest=0.1, seed=0)
    found = [part.pixels for part in decode(content, Decoding((32, 32), 3, crop=crop)).parts]
    boxes = crop.boxes((2000.0, 2000.0), (32, 32), hashlib.sha256(content).digest())
    wanted = [np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC, box=box)) for box in boxes]
    assert np.abs(np.asarray(found, int) - np.asarray(wanted, int)).mean() < 3
