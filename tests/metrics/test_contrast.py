import math

import numpy as np
import pytest
import torch

from diffusion_core.config.settings import ReferenceSettings
from diffusion_core.metrics.features import FeatureNetwork, extract
from diffusion_core.metrics.fitting import nt_xent
from diffusion_core.metrics.neighbours import nearest
from diffusion_core.metrics.reference import fit_reference
from tests.metrics.conftest import TRAIN, digits


def naive(first, second, temperature):
    views = [v / np.linalg.norm(v) for v in (*first, *second)]
    losses = []
    for i, view in enumerate(views):
        partner = (i + len(first)) % len(views)
        others = sum(math.exp(view @ other / temperature) for j, other in enumerate(views) if j != i)
        losses.append(-math.log(math.exp(view @ views[partner] / temperature) / others))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_the_loss_is_the_paper_s(temperature):
    random = np.random.default_rng(0)
    first, second = random.normal(size=(5, 3)), random.normal(size=(5, 3))
    loss = nt_xent(torch.from_numpy(first), torch.from_numpy(second), temperature)
    assert loss.item() == pytest.approx(naive(first, second, temperature))


def test_views_that_are_all_alike_are_at_chance():
    same = torch.ones(8, 4)
    assert nt_xent(same, same).item() == pytest.approx(math.log(2 * 8 - 1))


def nearest_has_the_same_label(train_features, validation_features, train, validation):
    return (train.labels[nearest(validation_features, train_features).indices[:, 0]] == validation.labels).mean()


def test_features_learned_without_labels_tell_digits_apart(train, validation):
    unlabelled = digits(0, TRAIN, labelled=False), digits(TRAIN, None, labelled=False)
    learned = fit_reference(*unlabelled, ReferenceSettings(images=10_000))
    assert learned.quality["final_loss"] < 0.75 * math.log(2 * 128 - 1)
    accuracy = nearest_has_the_same_label(learned.train_features, learned.validation_features, train, validation)
    assert accuracy > 0.94

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        untrained = FeatureNetwork((8, 8), 1, features=64)
    features = [extract(untrained, dataset.images()) for dataset in (train, validation)]
    assert 1.0 - accuracy < 0.6 * (1.0 - nearest_has_the_same_label(*features, train, validation))
