import numpy as np
import pytest

from diffusion_core.metrics.figures.memorisation import Memorisation
from diffusion_core.metrics.figures.metric import RealFeatures


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def real(random):
    return RealFeatures.split(random.normal(size=(1500, 6)), random.normal(size=(4000, 6)), 2000, random)


def share(samples, real, quantile=0.05):
    return Memorisation(quantile=quantile).compute(samples, real)["memorisation"]


def test_copies_of_any_training_image_are_found(random, real):
    assert share(real.train, real) == 1.0
    assert share(real.train + 1e-3 * random.normal(size=real.train.shape), real) > 0.99


@pytest.mark.parametrize("quantile", [0.05, 0.2])
def test_fresh_images_give_the_quantile_and_so_does_the_floor(random, real, quantile):
    # Both the quantile and the share are estimates, of 2000 images each.
    within = 4 * np.sqrt(2 * quantile * (1 - quantile) / 2000)
    assert share(random.normal(size=(2000, 6)), real, quantile) == pytest.approx(quantile, abs=within)
    figures = Memorisation(quantile=quantile).beside_floor(random.normal(size=(2000, 6)), real)
    assert figures["memorisation_floor"] == pytest.approx(quantile, abs=within)


def test_a_model_that_copies_now_and_then_is_found_out_in_proportion(random, real):
    samples = np.concatenate((random.normal(size=(1600, 6)), real.train[:400]))
    assert share(samples, real) == pytest.approx(0.2 + 0.8 * 0.05, abs=0.02)


def test_images_unlike_any_training_image_are_no_copies(random, real):
    assert share(random.normal(size=(500, 6)) + 20.0, real) == 0.0


def test_copies_are_found_where_validation_images_are_copies_too(random):
    train = random.normal(size=(200, 6))
    real = RealFeatures(train, (train, train), (train[:50], train[50:]))
    assert share(train, real) == 1.0
    assert share(random.normal(size=(200, 6)), real) == 0.0


@pytest.mark.parametrize("quantile", [0.0, 1.0])
def test_a_quantile_must_lie_between_its_ends(quantile):
    with pytest.raises(ValueError, match="quantile is"):
        Memorisation(quantile=quantile)
