import numpy as np
import pytest

from diffusion_core.metrics.figures.class_entropy import ClassEntropy
from diffusion_core.metrics.figures.metric import Real
from tests.metrics.pictures import pictures


def near(counts):
    """Samples of which so many are nearest to each class."""
    return pictures(np.repeat(np.arange(len(counts)), counts)[:, None] * 10.0 + 0.1)


def real(labels):
    train = pictures(np.arange(len(labels))[:, None] * 10.0, labels=np.array(labels))
    return Real(train, (train, train), (train, train))


def entropy(counts, labels=(0, 1, 2, 3)):
    return ClassEntropy().compute(near(counts), real(labels))["class_entropy"]


def test_is_one_for_as_many_of_each_class_and_zero_for_one_class():
    assert entropy([5, 5, 5, 5]) == pytest.approx(1.0)
    assert entropy([20, 0, 0, 0]) == 0.0
    assert np.signbit(entropy([20, 0, 0, 0])) == np.False_


def test_equals_the_formula():
    shares = np.array([0.5, 0.25, 0.15, 0.1])
    assert entropy([50, 25, 15, 10]) == pytest.approx(-(shares * np.log(shares)).sum() / np.log(4))


def test_falls_as_classes_get_lost():
    found = [entropy(counts) for counts in ([8, 8, 8, 8], [14, 8, 6, 4], [20, 12, 0, 0], [30, 2, 0, 0])]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == 4


@pytest.mark.parametrize("labels", [(0, 0, 0, 0), None])
def test_without_classes_it_is_left_out(labels):
    train = pictures(np.zeros((4, 1)), labels=None if labels is None else np.array(labels))
    assert ClassEntropy().compute(near([2, 2]), Real(train, (train, train), (train, train))) == {}
