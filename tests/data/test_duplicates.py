"""The same picture is found after another compression or scaling, and other pictures are not taken for it."""

from itertools import combinations

import numpy as np
import pytest
from PIL import Image
from skimage import data

from diffusion_core.data import duplicates
from diffusion_core.data.decode import decode
from diffusion_core.data.decoding import Decoding
from diffusion_core.data.duplicates import MOST_BITS, _candidates, are_near, groups, perceptual_hash
from tests.data.encoded import encoded

PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "coffee", "coins", "moon", "retina", "rocket")
RANDOM = np.random.default_rng(0)


def photograph(name):
    return Image.fromarray(np.asarray(getattr(data, name)())).convert("RGB")


def at_half(image):
    width, height = image.size
    return image.resize((width // 2, height // 2)).resize((width, height))


def shifted(image):
    """Crop less than a pixel at each side."""
    width, height = image.size
    box = (0.4, 0.3, width - 0.3, height - 0.4)
    return image.resize(image.size, Image.Resampling.BICUBIC, box=box)


AGAIN = {
    "JPEG": lambda image: encoded(image, "JPEG", quality=60),
    "WebP": lambda image: encoded(image, "WEBP", quality=75),
    "half the size": lambda image: encoded(image.resize((image.width // 2, image.height // 2)), "PNG"),
    "scaled down and up": lambda image: encoded(at_half(image), "PNG"),
    "cropped by less than a pixel": lambda image: encoded(shifted(image), "PNG"),
    "another file of the same pixels": lambda image: encoded(image, "PNG", compress_level=1),
}


def decoded(contents, size):
    return [decode(content, Decoding((size, size), 3)) for content in contents]


def grouped(images, distance=0.4):
    found = groups(
        [each.perceptual_hash for each in images],
        [each.sha256 for each in images],
        lambda number: images[number].pixels,
        distance,
    )
    return found.tolist()


@pytest.mark.parametrize("size", [32, 64])
def test_a_picture_that_was_encoded_or_scaled_again_is_in_one_group_with_the_first(size):
    pictures = [photograph(name) for name in PHOTOGRAPHS]
    ways = [lambda image: encoded(image, "PNG"), *AGAIN.values()]
    images = decoded([way(picture) for way in ways for picture in pictures], size)
    found = grouped(images)
    for way in range(1, len(ways)):
        assert found[way * len(pictures) :][: len(pictures)] == found[: len(pictures)], [*AGAIN][way - 1]
    # No two photographs share a group.
    assert len({*found}) == len(pictures)
    # The control: the last way alone gives equal pixels.
    assert len({each.sha256 for each in images}) == (len(ways) - 1) * len(pictures)


def tiles():
    """Many parts of photographs, none of which overlap, and faces, which are all alike."""
    parts = [
        np.asarray(photograph(name).resize((384, 384)).crop((left, top, left + 96, top + 96)))
        for name in PHOTOGRAPHS
        for left in range(0, 384, 96)
        for top in range(0, 384, 96)
    ]
    faces = np.rint(data.lfw_subset()[:100] * 255).astype(np.uint8)
    return [*parts, *(np.repeat(face[..., None], 3, axis=2) for face in faces)]


def noise():
    return list(RANDOM.integers(0, 256, (300, 48, 48, 3), np.uint8))


def gradients():
    """Gradients of other directions, whose hashes are alike."""
    steps = np.linspace(-1, 1, 48)
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    shades = [128 + 80 * (np.cos(angle) * steps + np.sin(angle) * steps[:, None]) for angle in angles]
    return [np.repeat(np.rint(shade).astype(np.uint8)[..., None], 3, axis=2) for shade in shades]


@pytest.mark.parametrize(("make", "distance"), [(tiles, 0.4), (noise, 0.4), (gradients, 0.2)])
def test_other_pictures_are_in_groups_of_their_own(make, distance):
    images = decoded([encoded(Image.fromarray(image), "PNG") for image in make()], 32)
    assert len({*grouped(images, distance)}) == len(images)


def test_by_the_hash_alone_other_pictures_would_be_one():
    """The control of the pixels' word: many gradients share a hash."""
    images = decoded([encoded(Image.fromarray(image), "PNG") for image in gradients()], 32)
    assert len({*grouped(images, distance=10.0)}) < len(images) / 2


def with_bits_flipped(value, count):
    for bit in RANDOM.choice(64, count, replace=False):
        value ^= 1 << int(bit)
    return value


def hashes():
    """Random hashes, with others near to some of them, and many that share a part."""
    free = [int(each) for each in RANDOM.integers(0, 2**64, 600, np.uint64)]
    near = [with_bits_flipped(free[number % 300], number % 11) for number in range(600)]
    crowded = [(int(each) << 8) | 0xAB for each in RANDOM.integers(0, 2**56, 600)]
    few = [with_bits_flipped(0, number % 5) for number in range(200)]
    return np.array([*free, *near, *crowded, *few], np.uint64)


def by_force(known):
    pairs = combinations(range(len(known)), 2)
    return [pair for pair in pairs if (int(known[pair[0]]) ^ int(known[pair[1]])).bit_count() <= duplicates.MOST_BITS]


def test_all_pairs_whose_hashes_are_near_are_compared_and_no_others():
    known = hashes()
    expected = by_force(known)
    assert len(expected) > 10_000
    assert _candidates(known) == expected


def test_with_more_bits_than_parts_pairs_would_be_missed(monkeypatch):
    """The control: of hashes that differ once in each part, no part is equal."""
    each_part = sum(1 << 8 * part for part in range(8))
    known = np.array([5, 5 ^ each_part], np.uint64)
    monkeypatch.setattr(duplicates, "MOST_BITS", MOST_BITS + 1)
    assert by_force(known) == [(0, 1)]
    assert _candidates(known) == []


@pytest.mark.parametrize("count", [0, 1])
def test_no_image_and_one_have_no_pair(count):
    assert groups([7] * count, ["a"] * count, None, 0.4).tolist() == [0] * count


def crowd(count):
    """Images with one hash and other pixels, and a copy of the first; also a list of the images that are looked at."""
    pixels = RANDOM.integers(0, 256, (count, 4, 4, 1), np.uint8)
    looked_at = []
    digests = [*map(str, range(count)), "0"]

    def of(number):
        looked_at.append(number)
        return pixels[number % count]

    return [9] * (count + 1), digests, of, looked_at


def test_many_equal_hashes_cost_few_comparisons_and_equal_pixels_are_found_still():
    count = duplicates.LARGEST_BUCKET + 100
    known, digests, pixels, looked_at = crowd(count)
    found = groups(known, digests, pixels, 0.1)
    assert found[-1] == found[0]
    assert len({*found.tolist()}) == count
    assert len(looked_at) == 2 * (count - 1)


def test_fewer_are_compared_each_with_each():
    """The control."""
    known, digests, pixels, looked_at = crowd(100)
    groups(known, digests, pixels, 0.1)
    assert len(looked_at) == 100 * 99


def test_near_duplicates_of_near_duplicates_share_a_group():
    chain = [np.full((4, 4, 1), level, np.uint8) for level in (10, 11, 12, 20)]
    assert are_near(chain[0], chain[1], 0.0)
    assert not are_near(chain[0], chain[2], 0.0)
    found = groups([0] * 4, ["a", "b", "c", "d"], lambda number: chain[number], 0.0).tolist()
    assert found[0] == found[1] == found[2] != found[3]


@pytest.mark.parametrize("distance", [0.1, 0.4])
def test_images_are_near_by_their_distance_as_a_share_of_the_contrast(distance):
    one = np.tile(np.array([78, 178], np.uint8), 32).reshape(8, 8, 1)
    # The standard deviation is 50, and each pixel differs by as much as told.
    below, above = (one + np.uint8(50 * distance + step) for step in (-1, 1))
    assert are_near(one, below, distance)
    assert not are_near(one, above, distance)


def test_the_hash_does_not_depend_on_brightness_or_on_channels_of_gray():
    gray = np.asarray(photograph("astronaut").convert("L").resize((64, 64)))[..., None] // 2
    known = perceptual_hash(gray)
    assert perceptual_hash(gray + 100) == known
    assert perceptual_hash(np.repeat(gray, 3, axis=2)) == known
    opaque = np.concatenate([np.repeat(gray, 3, axis=2), np.full_like(gray, 255)], axis=2)
    assert perceptual_hash(opaque) == known
    assert (perceptual_hash(gray[:, ::-1]) ^ known).bit_count() > MOST_BITS


def test_each_cell_has_its_bit():
    pixels = np.zeros((8, 9, 1), np.uint8)
    assert perceptual_hash(pixels) == 0
    pixels[:, ::2] = 9
    # In each of eight rows, the cells fall and rise in turn.
    assert perceptual_hash(pixels) == int("10101010" * 8, 2)
