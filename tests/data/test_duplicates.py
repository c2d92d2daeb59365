"""The same picture is found again after another compression or scaling, and others are not."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image
from skimage import data

from diffusion_core.data import duplicates
from diffusion_core.data.duplicates import MOST_BITS, are_near, groups, perceptual_hash

PHOTOGRAPHS = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
DISTANCE = 0.4


def small(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC))


def encoded(picture: Image.Image, kind: str, quality: int) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, kind, quality=quality)
    return Image.open(file)


def grouped(images: list[np.ndarray], files: list[str] | None = None) -> list[int]:
    digests = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    hashes = [perceptual_hash(image) for image in images]
    names = [str(number) for number in range(len(images))] if files is None else files
    return groups(names, hashes, digests, lambda number: images[number], DISTANCE).tolist()


@pytest.mark.parametrize("photograph", PHOTOGRAPHS, ids=["astronaut", "coffee", "cat", "rocket"])
def test_a_picture_that_was_encoded_or_scaled_again_is_found(photograph: np.ndarray) -> None:
    picture = Image.fromarray(photograph)
    width, height = picture.size
    others = [
        encoded(picture, "JPEG", 60),
        encoded(picture, "WEBP", 60),
        picture.resize((width // 3, height // 3)),
        picture.crop((2, 2, width - 2, height - 2)),
    ]
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    found = grouped([small(picture), noise, *map(small, others)])
    assert found.count(found[0]) == 5
    assert found[1] != found[0]


def test_different_pictures_are_not_the_same() -> None:
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(200)]
    images = [*(small(Image.fromarray(each)) for each in PHOTOGRAPHS), *noise]
    assert len(set(grouped(images))) == len(images)


def test_equal_pixels_are_the_same_however_flat() -> None:
    white = np.full((8, 8, 1), 255, np.uint8)
    assert grouped([white, white.copy(), white - 200]) == [0, 0, 2]


def test_parts_of_a_file_are_together_and_a_blank_one_joins_no_other_file() -> None:
    random = np.random.default_rng(0)
    one, two, three = (random.integers(0, 256, (16, 16, 3), np.uint8) for _ in range(3))
    white = np.full((16, 16, 3), 255, np.uint8)
    images = [one, white, two, white, three, three]
    assert grouped(images, ["a", "a", "b", "b", "c", "d"]) == [0, 0, 2, 2, 4, 4]


def test_candidates_are_the_pairs_of_near_hashes() -> None:
    """By brute force, with hashes that differ in up to twelve bits."""
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, 60, np.uint64, endpoint=False)
    near = [hashes[number % 60] ^ np.uint64(sum(1 << int(bit) for bit in random.choice(64, number % 13, False)))
            for number in range(200)]  # fmt: skip
    known = np.array([*hashes, *near], np.uint64)
    pairs = {
        (one, other)
        for one in range(len(known))
        for other in range(one + 1, len(known))
        if int(known[one] ^ known[other]).bit_count() <= MOST_BITS
    }
    found = [tuple(pair) for block in duplicates._candidates(known) for pair in block.tolist()]
    assert sorted(found) == sorted(pairs)
    assert len(pairs) > 100


def test_the_distance_is_a_share_of_the_contrast() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.float64)
    step = 0.2 * image.std()
    other = np.clip(image + step * np.where(np.indices(image.shape).sum(axis=0) % 2, 1, -1), 0, 255)
    share = float(np.sqrt(np.mean((image - other) ** 2))) / image.std()
    one, two = image.astype(np.uint8), np.rint(other).astype(np.uint8)
    assert are_near(one, two, share * 1.05)
    assert not are_near(one, two, share * 0.95)


def test_averages_never_part_a_pair_that_is_near() -> None:
    """With shapes that cells do not divide, and differences of all frequencies."""
    random = np.random.default_rng(0)
    for shape in ((32, 32, 3), (7, 13, 1), (50, 9, 4)):
        base = random.integers(0, 256, shape).astype(np.float64)
        images = [base.astype(np.uint8)]
        for amount in (0.5, 3.0, 20.0, 28.0, 60.0):
            images += [
                np.clip(base + amount * random.standard_normal(shape), 0, 255).astype(np.uint8),
                np.clip(base + amount, 0, 255).astype(np.uint8),
            ]
        pairs = np.array([(one, other) for one in range(len(images)) for other in range(one)])
        thumbnails = duplicates._Thumbnails(images.__getitem__, DISTANCE)
        kept = {tuple(pair) for pair in thumbnails.alike(pairs).tolist()}
        near = {(a, b) for a, b in pairs.tolist() if are_near(images[a], images[b], DISTANCE)}
        assert near <= kept
        assert 0 < len(near) < len(pairs)


def test_many_pictures_that_are_alike_are_told_apart() -> None:
    """As objects on white: their hashes are equal, and their pixels are not."""
    images = []
    for number in range(2 * duplicates.BLOCK + 1):
        image = np.full((32, 32, 1), 255, np.uint8)
        image[:: 2 if number % 2 else 1, 3:29] = number % 7
        images.append(image)
    assert grouped(images) == [number % 2 for number in range(len(images))]
