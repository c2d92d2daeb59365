"""The metrics see what is wrong with digits, with the domain's features and with ImageNet's."""

from contextlib import chdir

import numpy as np
import pytest
import torch

from benchmarks import corruptions
from benchmarks.corruptions import CORRUPTIONS, LEVELS, SELECTIONS, SIGNS, Work, measure, samples, wrong
from diffusion_core.config.settings import EvaluateSettings, ReferenceSettings
from diffusion_core.metrics.evaluation import Evaluator
from diffusion_core.metrics.reference import fit_reference
from diffusion_core.metrics.views import domain_view


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    with chdir(tmp_path_factory.mktemp("digits")):
        train, held_out = Work({"kind": "digits"}, 8, "grayscale", 0).open()
    reference = fit_reference(train, held_out, ReferenceSettings(images=30_000), torch.device("cpu"))
    return Evaluator([domain_view(reference)], train, held_out, EvaluateSettings())


def test_every_metric_moves_the_right_way_at_every_level(evaluator):
    assert wrong(measure(evaluator)) == []


def test_a_metric_that_does_not_move_is_found(evaluator, monkeypatch):
    """The control: corruptions that change nothing."""
    for kind in CORRUPTIONS:
        monkeypatch.setitem(CORRUPTIONS, kind, lambda images, level, random: images)
    found = wrong(measure(evaluator))
    assert len([clause for clause in found if any(kind in clause for kind in CORRUPTIONS)]) == sum(
        len(SIGNS[kind]) for kind in CORRUPTIONS
    )


@pytest.mark.parametrize("kind", [*CORRUPTIONS, *SELECTIONS])
def test_a_stronger_corruption_changes_more(evaluator, kind):
    clean, *others = (
        samples(kind, level, evaluator.train, evaluator.validation, np.random.default_rng(0)) for level in LEVELS
    )
    assert clean.shape == others[-1].shape == (int(corruptions.SHARE * len(evaluator.validation)), 8, 8, 1)
    changed = [np.abs(each.astype(int) - clean).mean() for each in others]
    assert changed[-1] > changed[0] > 0
