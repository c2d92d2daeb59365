import numpy as np
import pytest
import torch
from torch import nn

from diffusion_core.config.settings import ReferenceSettings
from diffusion_core.metrics.fitting import fit


def seen_by(count, **settings):
    """The batches of indices that a training asks for."""
    module, batches = nn.Linear(1, 1), []

    def loss_of(indices):
        batches.append(indices.tolist())
        return module(torch.ones(1, 1)).square().mean()

    fit(module, loss_of, count, ReferenceSettings(**settings), "test")
    return batches


def test_the_budget_is_in_images():
    assert [len(batch) for batch in seen_by(100, images=95, batch_size=10)] == [10] * 9


def test_a_pass_shows_no_image_twice_and_the_next_has_another_order():
    batches = seen_by(12, images=24, batch_size=4)
    first, second = np.concatenate(batches[:3]).tolist(), np.concatenate(batches[3:]).tolist()
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_a_batch_is_no_larger_than_the_dataset():
    assert [len(batch) for batch in seen_by(7, images=20, batch_size=128)] == [7, 7]


def test_it_minimises_and_tells_the_loss_at_the_end():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs = torch.randn(256, 3)
        module = nn.Linear(3, 1)
    targets = inputs @ torch.tensor([[1.0], [-2.0], [0.5]])
    weights = []

    def loss_of(indices):
        weights.append(module.weight.detach().clone())
        return (module(inputs[indices]) - targets[indices]).square().mean()

    settings = ReferenceSettings(images=40_000, batch_size=64, learning_rate=0.05)
    assert fit(module, loss_of, 256, settings, "test") < 1e-3
    # Weight decay keeps them a little short of the targets.
    assert module.weight.tolist()[0] == pytest.approx([1.0, -2.0, 0.5], abs=0.03)
    assert not module.training


def test_the_learning_rate_rises_and_falls_to_nothing():
    module, weights = nn.Linear(1, 1), []

    def loss_of(_):
        weights.append(module.weight.item())
        # A constant gradient makes Adam's steps as long as the learning rate.
        return module.weight.sum()

    fit(module, loss_of, 100, ReferenceSettings(images=10_000, batch_size=100, learning_rate=0.1), "test")
    steps = -np.diff(weights)
    assert steps.max() == pytest.approx(0.1, rel=0.1)
    assert steps[0] < 0.1 * steps.max()
    assert steps[-1] < 0.01 * steps.max()
    assert 20 < steps.argmax() < 40
