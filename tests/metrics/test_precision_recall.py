import numpy as np
import pytest
from prdc import compute_prdc

from diffusion_core.errors import UserError
from diffusion_core.metrics.estimate import Estimate
from diffusion_core.metrics.figures.precision_recall import PrecisionRecall
from tests.metrics.pictures import against, pictures


def naive_share(points, centres, k):
    radii = [sorted(np.linalg.norm(c - other) for other in centres)[k] for c in centres]
    inside = [any(np.linalg.norm(p - c) <= r for c, r in zip(centres, radii, strict=True)) for p in points]
    return sum(inside) / len(inside)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_equals_the_definition(k):
    random = np.random.default_rng(k)
    real, samples = random.normal(size=(60, 3)), random.normal(size=(40, 3)) * 1.3 + 0.4
    figures = PrecisionRecall(neighbours=k).compute(pictures(samples), against(real))
    assert figures["precision"] == pytest.approx(naive_share(samples, real, k))
    assert figures["recall"] == pytest.approx(naive_share(real, samples, k))
    assert 0.0 < figures["precision"] < 1.0


def test_both_are_one_for_the_same_set_and_zero_far_away():
    real = np.random.default_rng(0).normal(size=(700, 8)).astype(np.float32)
    same = PrecisionRecall().compute(pictures(real), against(real))
    assert (same["precision"], same["recall"], same["coverage"]) == (1.0, 1.0, 1.0)
    assert set(PrecisionRecall().compute(pictures(real + 100.0), against(real)).values()) == {0.0}


@pytest.mark.parametrize("k", [1, 3, 5])
def test_equals_the_authors_code(k):
    random = np.random.default_rng(k)
    real, samples = random.normal(size=(60, 3)), random.normal(size=(40, 3)) * 1.3 + 0.4
    expected = compute_prdc(real, samples, k)
    assert PrecisionRecall(neighbours=k).compute(pictures(samples), against(real)) == pytest.approx(expected)


def test_coverage_without_a_floor_is_one_sentence():
    def covered(floor):
        return {"coverage": Estimate(value=0.2, replicates=(0.2, 0.3), floor=floor, ceiling=0.0)}

    assert PrecisionRecall().derived(covered(0.4))["coverage_ratio"].value == pytest.approx(0.5)
    with pytest.raises(UserError, match="coverage has no floor: add images that are alike"):
        PrecisionRecall().derived(covered(0.0))


def test_one_odd_real_image_widens_precision_and_not_density():
    """Naeem et al. 2020, figure 4: the ball about an outlier holds many samples."""
    random = np.random.default_rng(0)
    real, samples = random.normal(size=(400, 8)), random.normal(size=(400, 8)) + 2.0
    odd = np.concatenate((real, np.full((1, 8), 8.0)))
    before, after = (PrecisionRecall().compute(pictures(samples), against(each)) for each in (real, odd))
    assert after["precision"] > before["precision"] + 0.7
    assert after["density"] < before["density"] + 0.4


def test_some_of_the_samples_are_as_if_there_were_no_others():
    random = np.random.default_rng(0)
    real, samples, kept = random.normal(size=(60, 3)), random.normal(size=(40, 3)), random.random(40) < 0.7
    whole = PrecisionRecall().against(against(real))(pictures(samples))(kept)
    assert whole == PrecisionRecall().compute(pictures(samples[kept]), against(real))


def test_samples_of_one_mode_lose_recall_and_not_precision():
    random = np.random.default_rng(0)
    real = np.concatenate((random.normal(size=(300, 4)), random.normal(size=(300, 4)) + 50.0))
    figures = PrecisionRecall().compute(pictures(random.normal(size=(600, 4))), against(real))
    assert figures["precision"] > 0.85
    assert figures["recall"] < 0.55


def test_scattered_samples_lose_precision_and_not_recall():
    random = np.random.default_rng(0)
    real = random.normal(size=(300, 4))
    scattered = np.concatenate((random.normal(size=(300, 4)), random.normal(size=(300, 4)) + 50.0))
    figures = PrecisionRecall().compute(pictures(scattered), against(real))
    assert figures["precision"] < 0.55
    assert figures["recall"] > 0.85


@pytest.mark.parametrize(("samples", "real"), [(3, 20), (20, 3)])
def test_no_more_images_than_neighbours_is_told(samples, real):
    random = np.random.default_rng(0)
    with pytest.raises(UserError, match=r"neighbours of precision_recall .* lower it"):
        PrecisionRecall().compute(pictures(random.normal(size=(samples, 2))), against(random.normal(size=(real, 2))))


def test_one_neighbour_is_the_least():
    with pytest.raises(ValueError, match="neighbours is 0"):
        PrecisionRecall(neighbours=0)
