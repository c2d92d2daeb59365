from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pytest

from diffusion_core.config.settings import EvaluateSettings
from diffusion_core.errors import UserError
from diffusion_core.metrics.estimate import flat
from diffusion_core.metrics.evaluation import Evaluator
from diffusion_core.metrics.figures import every_metric
from diffusion_core.metrics.figures.metric import Metric
from diffusion_core.metrics.views import domain_view

NAMES = [name for metric in every_metric() for name in metric.figures]


@pytest.fixture
def evaluate(reference, train, validation):
    def evaluate(images, settings=None):
        return Evaluator([domain_view(reference)], train, validation, settings or EvaluateSettings()).evaluate(images)

    return evaluate


def test_every_metric_has_interval_floor_and_ceiling(evaluate, validation):
    found = evaluate(validation.images())
    assert [*found.estimates] == NAMES
    named = found.counts | flat(found.estimates)
    assert tuple(named) == EvaluateSettings().figures
    assert np.isfinite(list(named.values())).all()
    assert found.counts == {"sample_count": len(validation), "compared_count": len(validation)}
    assert all(each.half_width > 0 for name, each in found.estimates.items() if name != "coverage")


def test_real_images_that_nobody_trained_on_are_near_the_floors(evaluate, validation):
    found = evaluate(validation.images()).estimates
    assert found["frechet_ratio"].value < 2.0
    assert abs(found["kernel"].value) < 0.05
    for name in ("precision", "recall", "density", "coverage", "class_entropy"):
        assert found[name].value == pytest.approx(found[name].floor, abs=0.12)
    assert found["coverage_ratio"].value == pytest.approx(found["coverage"].value / found["coverage"].floor, rel=1e-4)
    assert found["coverage_ratio"].floor == 1.0
    assert found["memorisation"].value < 0.15


def test_noise_is_far_from_everything_and_near_the_ceilings(evaluate, validation):
    noise = np.random.default_rng(7).integers(0, 256, validation.images().shape, dtype=np.uint8)
    found = evaluate(noise).estimates
    assert found["frechet_ratio"].value > 20
    assert found["kernel"].value > 1.0
    for name in ("precision", "recall", "density", "coverage"):
        assert found[name].value < 0.2
    for name in ("frechet", "kernel"):
        assert found[name].value == pytest.approx(found[name].ceiling, rel=0.1)


def test_copies_look_perfect_but_for_memorisation(evaluate, train):
    found = evaluate(train.images()).estimates
    assert found["frechet_ratio"].value < 1.0
    assert found["memorisation"].value == 1.0
    assert found["memorisation"].floor < 0.2


def test_one_class_alone_loses_recall_and_entropy(evaluate, train):
    found = evaluate(train.images()[train.labels == 3]).estimates
    assert found["precision"].value > 0.8
    assert found["recall"].value < 0.3
    assert found["coverage_ratio"].value < 0.5
    assert found["class_entropy"].value < 0.1
    assert found["frechet_ratio"].value > 10


def test_more_samples_than_half_of_the_training_images_are_cut_to_as_many(evaluate, train, validation):
    found = evaluate(np.concatenate((validation.images(), train.images())), EvaluateSettings(half_size=100))
    assert found.counts == {"sample_count": 1797, "compared_count": 100}
    # A seeded choice and not the first ones, which here are no copies.
    assert found.estimates["memorisation"].value > 0.5


def test_the_seed_decides_the_halves(evaluate, validation):
    images = validation.images()
    first, again, other = (evaluate(images, EvaluateSettings(seed=seed)).estimates for seed in (0, 0, 1))
    assert first == again
    assert first["frechet"].floor != other["frechet"].floor


def test_the_metrics_of_the_settings_are_those_that_are_measured(evaluate, validation):
    settings = EvaluateSettings.model_validate({"metrics": [{"kind": "precision_recall", "neighbours": 1}]})
    few = evaluate(validation.images(), settings).estimates
    assert set(few) == {"precision", "recall", "density", "coverage", "coverage_ratio"}
    assert few["precision"].value < evaluate(validation.images()).estimates["precision"].value


@pytest.mark.parametrize("count", [0, 2])
def test_fewer_than_three_samples_are_refused(evaluate, count):
    with pytest.raises(UserError, match=r"there are \d samples .* raise sample.count"):
        evaluate(np.zeros((count, 8, 8, 1), np.uint8))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(reference, train, validation, value):
    features = reference.train_features[:100].copy()
    features[7, 3] = value
    evaluator = Evaluator([domain_view(reference)], train, validation, EvaluateSettings())
    with pytest.raises(UserError, match="not finite"):
        evaluator.measure(train.images(slice(0, 50)), [features])


def test_a_figure_that_is_not_finite_is_an_error(reference, train, validation):
    settings = EvaluateSettings.model_validate({"metrics": [{"kind": "kernel"}]})
    evaluator = Evaluator([domain_view(reference)], train, validation, settings)
    with (
        pytest.raises(UserError, match="kernel of the samples"),
        np.errstate(over="ignore", invalid="ignore"),
    ):
        evaluator.measure(train.images(slice(0, 50)), [np.full((100, 64), 1e120)])


def test_constant_samples_are_measured_and_far_away(evaluate):
    found = evaluate(np.full((40, 8, 8, 1), 128, np.uint8)).estimates
    assert found["frechet_ratio"].value > 20
    assert found["recall"].value == found["class_entropy"].value == 0.0


def test_a_new_metric_needs_its_class_alone(evaluate, reference, validation):
    @dataclass(frozen=True)
    class Spread(Metric):
        figures: ClassVar[tuple[str, ...]] = ("spread",)
        kind: Literal["spread"] = "spread"

        def against(self, real):
            return lambda samples: lambda kept: {"spread": float(samples.features[kept].std())}

    settings = EvaluateSettings.model_construct(seed=0, half_size=5_000, metrics=(*every_metric(), Spread()))
    found = evaluate(validation.images(), settings).estimates
    assert found["spread"].value == pytest.approx(reference.validation_features.std(), rel=1e-4)
    assert [*found] == [*NAMES, "spread"]


def test_a_metric_that_does_not_name_its_figures_is_refused():
    with pytest.raises(TypeError, match="Nameless must list the names of its values"):
        type("Nameless", (Metric,), {})
