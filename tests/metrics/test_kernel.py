import numpy as np
import pytest

from diffusion_core.metrics.figures.kernel import Kernel, squared_mmd, squared_mmd_to
from tests.metrics.pictures import pictures, split


def k(x, y):
    return (np.dot(x, y) / len(x) + 1.0) ** 3


def naive(x, y):
    m = len(x)
    pairs = [(i, j) for i in range(m) for j in range(m)]
    within = sum(k(x[i], x[j]) + k(y[i], y[j]) for i, j in pairs if i != j) / (m * (m - 1))
    return within - 2 * sum(k(x[i], y[j]) for i, j in pairs) / m**2


@pytest.mark.parametrize(("m", "d"), [(2, 1), (7, 3), (20, 16)])
def test_equals_the_double_sum(m, d):
    random = np.random.default_rng(m)
    x, y = random.normal(size=(m, d)), random.normal(size=(m, d)) * 2.0 + 0.5
    assert squared_mmd(x, y) == pytest.approx(naive(x, y), rel=1e-10)


def test_has_mean_zero_for_two_samples_of_one_distribution():
    random = np.random.default_rng(0)
    draws = [(random.normal(size=(10, 4)), random.normal(size=(10, 4))) for _ in range(4000)]
    estimates = np.array([squared_mmd(x, y) for x, y in draws])
    error = estimates.std() / np.sqrt(len(estimates))
    assert abs(estimates.mean()) < 4 * error
    # The estimate that counts each point's likeness to itself is biased, and this many draws show it.
    biased = np.array([(k(x[0], x[0]) + k(y[0], y[0])) / 10 for x, y in draws]) + estimates
    assert biased.mean() > 20 * error


def test_has_the_discrepancy_of_the_distributions_as_its_mean():
    # For d = 1 the kernel is (xy + 1)^3 = 1 + 3 xy + 3 x^2 y^2 + x^3 y^3, so MMD^2 is 3 a^2 + 3 b^2 + c^2 where a, b, c
    # are the differences of the first three moments: of N(1, 1) they are 1, 2, 4, and of N(0, 1) 0, 1, 0.
    random = np.random.default_rng(0)
    estimates = np.array(
        [squared_mmd(random.normal(size=(100, 1)) + 1.0, random.normal(size=(100, 1))) for _ in range(1000)]
    )
    error = estimates.std() / np.sqrt(len(estimates))
    assert abs(estimates.mean() - 22.0) < 4 * error < 2.0


def test_is_near_zero_for_the_same_and_large_for_another_distribution():
    random = np.random.default_rng(0)
    train = random.normal(size=(2000, 8))
    real = split(train, train, 1000, random)
    same = Kernel().compute(pictures(random.normal(size=(500, 8))), real)["kernel"]
    other = Kernel().compute(pictures(random.normal(size=(500, 8)) + 0.5), real)["kernel"]
    assert abs(same) < 0.02 < 10 * 0.02 < other


def test_equals_the_double_sum_of_sets_of_different_sizes_and_of_some_of_the_samples():
    random = np.random.default_rng(0)
    x, y, kept = random.normal(size=(12, 3)), random.normal(size=(9, 3)) + 0.3, random.random(12) < 0.6
    chosen = x[kept]

    def mean(one, other):
        pairs = [(i, j) for i in range(len(one)) for j in range(len(other)) if one is not other or i != j]
        return sum(k(one[i], other[j]) for i, j in pairs) / len(pairs)

    expected = mean(chosen, chosen) + mean(y, y) - 2 * mean(chosen, y)
    assert squared_mmd_to(y)(x)(kept) == pytest.approx(expected, rel=1e-10)
