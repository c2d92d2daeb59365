import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from diffusion_core.errors import UserError
from diffusion_core.metrics.evaluation import estimated
from diffusion_core.metrics.figures.frechet import Frechet, frechet_distance, moments
from tests.metrics import pictures as given
from tests.metrics.pictures import pictures


def gaussian(random, d):
    factor = random.normal(size=(d, d))
    return random.normal(size=d), factor @ factor.T / d + 0.01 * np.eye(d)


def split(random, train, half_size=10_000):
    return given.split(train, train, half_size, random)


def ratio(samples, real):
    return estimated(Frechet(), pictures(samples), real, pictures(samples + 5.0))["frechet_ratio"].value


@pytest.mark.parametrize("d", [1, 2, 8, 64])
def test_equals_the_formula_with_an_independent_matrix_root(d):
    random = np.random.default_rng(d)
    (m1, c1), (m2, c2) = gaussian(random, d), gaussian(random, d)
    expected = np.sum((m1 - m2) ** 2) + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    assert frechet_distance(m1, c1, m2, c2) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("d", [2, 16])
def test_of_gaussians_with_the_same_axes_is_the_distance_of_means_and_deviations(d):
    random = np.random.default_rng(d)
    axes, _ = np.linalg.qr(random.normal(size=(d, d)))
    m1, m2, s1, s2 = random.normal(size=d), random.normal(size=d), random.uniform(size=d), random.uniform(size=d)
    distance = frechet_distance(m1, axes * s1**2 @ axes.T, m2, axes * s2**2 @ axes.T)
    assert distance == pytest.approx(np.sum((m1 - m2) ** 2) + np.sum((s1 - s2) ** 2), rel=1e-9)


def test_is_zero_for_the_same_gaussian_symmetric_and_quadratic_in_scale():
    random = np.random.default_rng(0)
    (m1, c1), (m2, c2) = gaussian(random, 12), gaussian(random, 12)
    assert frechet_distance(m1, c1, m1, c1) == pytest.approx(0.0, abs=1e-10)
    assert frechet_distance(m1, c1, m2, c2) == pytest.approx(frechet_distance(m2, c2, m1, c1))
    scaled = frechet_distance(3 * m1, 9 * c1, 3 * m2, 9 * c2)
    assert scaled == pytest.approx(9 * frechet_distance(m1, c1, m2, c2))


def test_survives_fewer_images_than_features():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(5, 40)), random.normal(size=(7, 40)) + 1.0
    (m1, c1), (m2, c2) = moments(x), moments(y)
    # tr (C1 C2)^(1/2) is the nuclear norm of A B^T where C1 = A^T A and C2 = B^T B.
    a, b = (x - m1) / 2.0, (y - m2) / np.sqrt(6.0)
    expected = np.sum((m1 - m2) ** 2) + np.trace(c1 + c2) - 2 * np.linalg.norm(a @ b.T, "nuc")
    assert frechet_distance(m1, c1, m2, c2) == pytest.approx(expected, rel=1e-6)


def test_of_many_samples_comes_near_the_distance_of_their_gaussians():
    random = np.random.default_rng(0)
    (m1, c1), (m2, c2) = gaussian(random, 6), gaussian(random, 6)
    x, y = random.multivariate_normal(m1, c1, 50_000), random.multivariate_normal(m2, c2, 50_000)
    assert frechet_distance(*moments(x), *moments(y)) == pytest.approx(frechet_distance(m1, c1, m2, c2), rel=0.02)


@pytest.mark.parametrize("count", [50, 200, 800])
def test_a_perfect_model_has_ratio_one_however_few_samples(count):
    random = np.random.default_rng(count)
    real = split(random, random.normal(size=(2000, 16)))
    ratios = [ratio(random.normal(size=(count, 16)), real) for _ in range(10)]
    # The floor is drawn once, so the mean of the ratios keeps its error; without matching counts it would be above 4.
    assert 0.6 < np.mean(ratios) < 1.6


def test_a_floor_of_more_images_than_samples_would_blame_the_model_for_the_bias():
    random = np.random.default_rng(0)
    real = split(random, random.normal(size=(2000, 16)))
    few = Frechet().compute(pictures(random.normal(size=(50, 16))), real)["frechet"]
    assert few > 4 * Frechet().compute(real.train_halves[1], real)["frechet"]


def test_a_shifted_model_is_far_above_the_floor():
    random = np.random.default_rng(0)
    real = split(random, random.normal(size=(1000, 16)))
    assert ratio(random.normal(size=(500, 16)) + 1.0, real) > 20


def test_images_that_are_all_the_same_are_refused():
    random = np.random.default_rng(0)
    real = split(random, np.ones((20, 4)))
    with pytest.raises(UserError, match=r"data/prepared .* add images"):
        ratio(random.normal(size=(10, 4)), real)


class Extractor(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 12, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, images):
        return self.layers(images.double() / 127.5 - 1.0)


def test_equals_torchmetrics_behind_the_same_extractor():
    torch.manual_seed(0)
    extractor = Extractor().double().eval()
    real, fake = (torch.randint(0, most, (count, 3, 9, 9), dtype=torch.uint8) for most, count in ((256, 80), (170, 70)))
    metric = FrechetInceptionDistance(feature=extractor, input_img_size=(3, 9, 9))
    metric.set_dtype(torch.float64)
    with torch.inference_mode():
        metric.update(real, real=True)
        metric.update(fake, real=False)
        x, y = (moments(extractor(images).numpy()) for images in (real, fake))
    assert frechet_distance(*x, *y) == pytest.approx(float(metric.compute()), rel=1e-6)
