import numpy as np
import pytest
from scipy import stats

from diffusion_core.metrics.estimate import GROUPS, Estimate, difference, half_width
from diffusion_core.metrics.evaluation import estimated
from diffusion_core.metrics.figures.frechet import Frechet
from diffusion_core.metrics.figures.kernel import Kernel
from diffusion_core.metrics.figures.precision_recall import PrecisionRecall
from tests.metrics.pictures import pictures, split


def replicates(values):
    """The means of these values without each of the groups."""
    group = np.arange(len(values)) % GROUPS
    return tuple(float(values[group != number].mean()) for number in range(GROUPS))


def test_of_a_mean_it_is_the_interval_of_the_means_of_the_groups():
    values = np.random.default_rng(0).normal(size=200)
    means = values.reshape(-1, GROUPS).mean(axis=0)
    expected = stats.t.interval(0.95, GROUPS - 1, means.mean(), means.std(ddof=1) / np.sqrt(GROUPS))
    assert half_width(replicates(values)) == pytest.approx((expected[1] - expected[0]) / 2)


METRICS = {"frechet": Frechet(), "kernel": Kernel(), "precision": PrecisionRecall(), "recall": PrecisionRecall()}


@pytest.mark.parametrize("name", METRICS)
def test_other_samples_of_the_same_model_lie_within_it(name):
    """The difference of two evaluations has twice the variance of one, so it exceeds sqrt(2) widths in 5%."""
    random = np.random.default_rng(0)
    train = random.normal(size=(800, 6))
    real = split(train, train, 400, random)

    def evaluated():
        samples = pictures(random.normal(size=(400, 6)) * 0.8 + 0.4)
        return estimated(METRICS[name], samples, real, samples)[name]

    found = [evaluated() for _ in range(60)]
    spread = np.std([each.value for each in found], ddof=1)
    # Of a spread that 60 draws show with an error of 9%.
    width = np.median([each.half_width for each in found])
    # Distances to nearest neighbours change by jumps, which makes that of recall too wide and never too narrow.
    assert 0.7 < width / (stats.t.ppf(0.975, GROUPS - 1) * spread) < (1.8 if name == "recall" else 1.35)


def estimate(values):
    return Estimate(value=float(values.mean()), replicates=replicates(values), floor=0.0, ceiling=1.0)


def test_a_difference_of_pairs_has_the_interval_of_what_is_left_of_the_pairs():
    random = np.random.default_rng(0)
    common = random.normal(size=400)
    one, other = common + 0.1 * random.normal(size=400), common + 0.1 * random.normal(size=400) - 0.05
    found, width = difference(estimate(one), estimate(other))
    assert found == pytest.approx((one - other).mean())
    assert width == pytest.approx(half_width(replicates(one - other)))
    # The control: without the pairs, the difference would drown in what both have.
    assert width < 0.3 * np.hypot(estimate(one).half_width, estimate(other).half_width)
    assert width < found


def test_values_are_named_and_have_six_digits():
    named = Estimate(value=1 / 3, replicates=(0.3, 0.4), floor=0.1, ceiling=2e7 / 3).rounded().named("x")
    assert [*named] == ["x", "x_low", "x_high", "x_floor", "x_ceiling"]
    assert (named["x"], named["x_ceiling"]) == (0.333333, 6666670.0)
    assert named["x_high"] - named["x"] == pytest.approx(named["x"] - named["x_low"], rel=1e-5)
