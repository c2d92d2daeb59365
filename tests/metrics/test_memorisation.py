import numpy as np
import pytest

from diffusion_core.metrics.evaluation import estimated
from diffusion_core.metrics.figures.memorisation import Memorisation
from diffusion_core.metrics.figures.metric import Real
from tests.metrics.pictures import pictures, split

SIDE = 12


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def real(random):
    return split(random.normal(size=(1500, 6)), random.normal(size=(1200, 6)), 600, random)


def share(samples, real, quantile=0.05):
    return Memorisation(quantile=quantile).compute(samples, real)["memorisation"]


def test_copies_of_any_training_image_are_found(random, real):
    assert share(real.train, real) == 1.0
    train = real.train.features
    assert share(pictures(train + 1e-3 * random.normal(size=train.shape)), real) > 0.99


@pytest.mark.parametrize("quantile", [0.05, 0.2])
def test_fresh_images_give_the_quantile_and_so_does_the_floor(random, real, quantile):
    # Both the quantile and the share are estimates, of 600 images each.
    within = 4 * np.sqrt(2 * quantile * (1 - quantile) / 600)
    fresh = pictures(random.normal(size=(600, 6)))
    found = estimated(Memorisation(quantile=quantile), fresh, real, fresh)["memorisation"]
    assert found.value == pytest.approx(quantile, abs=within)
    assert found.floor == pytest.approx(quantile, abs=within)


def test_a_model_that_copies_now_and_then_is_found_out_in_proportion(random, real):
    samples = np.concatenate((random.normal(size=(1600, 6)), real.train.features[:400]))
    assert share(pictures(samples), real) == pytest.approx(0.2 + 0.8 * 0.05, abs=0.04)


def test_images_unlike_any_training_image_are_no_copies(random, real):
    # Their pixels are noise, of which few are more alike than those of validation images.
    assert share(pictures(random.normal(size=(500, 6)) + 20.0), real) < 0.08


def soft(random, count):
    """Images with structure, as photographs have."""
    small = random.integers(0, 256, (count, SIDE // 4, SIDE // 4, 1), dtype=np.uint8)
    return small.repeat(4, axis=1).repeat(4, axis=2)


def noisy(random, images, levels):
    noise = random.integers(-levels, levels + 1, images.shape)
    return np.clip(images.astype(int) + noise, 0, 255).astype(np.uint8)


def by_pixels(images):
    """Pictures whose features are their pixels, and so say what the pixels say."""
    return pictures(images.reshape(len(images), -1).astype(np.float32), images)


@pytest.mark.parametrize("has_duplicates", [False, True])
def test_copies_with_two_levels_of_noise_are_found_with_and_without_duplicates_in_the_data(random, has_duplicates):
    images, others = soft(random, 80), soft(random, 40)
    train = by_pixels(np.concatenate((images, images)) if has_duplicates else images)
    held_out = by_pixels(images[:40] if has_duplicates else others)
    real = Real(train, (train, train), (held_out, held_out))
    assert share(by_pixels(noisy(random, images[:60], 2)), real) == 1.0
    # The control: other images of the same kind.
    assert share(by_pixels(soft(random, 60)), real) < 0.2


def test_pixels_are_asked_where_features_see_no_copy(random):
    """A copy, whose features another extractor would move far away."""
    images = soft(random, 80)
    train, held_out = (
        pictures(random.normal(size=(80, 6)), images),
        pictures(random.normal(size=(40, 6)), soft(random, 40)),
    )
    real = Real(train, (train, train), (held_out, held_out))
    copies = pictures(random.normal(size=(60, 6)) + 20.0, noisy(random, images[:60], 2))
    assert share(copies, real) == 1.0
    assert share(pictures(random.normal(size=(60, 6)) + 20.0, soft(random, 60)), real) < 0.2


@pytest.mark.parametrize("quantile", [0.0, 1.0])
def test_a_quantile_must_lie_between_its_ends(quantile):
    with pytest.raises(ValueError, match="quantile is"):
        Memorisation(quantile=quantile)
