from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pytest

from diffusion_core.config.settings import EvaluateSettings
from diffusion_core.errors import UserError
from diffusion_core.metrics.evaluation import evaluate_features, evaluate_samples
from diffusion_core.metrics.figures import every_metric
from diffusion_core.metrics.figures.metric import Metric

# A ratio to the floor has no floor of its own.
NAMES = [name for metric in every_metric() for name in metric.figures if not name.endswith(("_floor", "_ratio"))]


def test_every_metric_stands_beside_its_floor(reference, validation):
    measured = evaluate_samples(validation.images(), reference, EvaluateSettings())
    assert set(measured) == {
        *NAMES,
        *(f"{name}_floor" for name in NAMES),
        "frechet_ratio",
        "samples",
        "compared",
    }
    assert tuple(measured) == EvaluateSettings().figures
    assert np.isfinite(list(measured.values())).all()
    assert measured["samples"] == measured["compared"] == len(validation)


def test_real_images_that_nobody_trained_on_are_near_the_floors(reference, validation):
    measured = evaluate_samples(validation.images(), reference, EvaluateSettings())
    assert measured["frechet_ratio"] < 2.0
    assert abs(measured["kernel"]) < 0.05
    for name in ("precision", "recall"):
        assert measured[name] == pytest.approx(measured[f"{name}_floor"], abs=0.1)
    assert measured["memorisation"] < 0.15


def test_noise_is_far_from_everything(reference, validation):
    noise = np.random.default_rng(0).integers(0, 256, validation.images().shape, dtype=np.uint8)
    measured = evaluate_samples(noise, reference, EvaluateSettings())
    assert measured["frechet_ratio"] > 20
    assert measured["kernel"] > 1.0
    assert measured["precision"] < 0.2
    assert measured["recall"] < 0.2


def test_copies_look_perfect_but_for_memorisation(reference, train):
    measured = evaluate_samples(train.images(), reference, EvaluateSettings())
    assert measured["frechet_ratio"] < 1.0
    assert measured["memorisation"] == 1.0
    assert measured["memorisation_floor"] < 0.2


def test_one_class_alone_loses_recall(reference, train):
    measured = evaluate_samples(train.images()[train.labels == 3], reference, EvaluateSettings())
    assert measured["precision"] > 0.8
    assert measured["recall"] < 0.3
    assert measured["frechet_ratio"] > 10


def test_more_samples_than_half_of_the_training_images_are_cut_to_as_many(reference, train, validation):
    images = np.concatenate((validation.images(), train.images()))
    measured = evaluate_samples(images, reference, EvaluateSettings(half_size=100))
    assert measured["samples"] == len(images)
    assert measured["compared"] == 100
    # A seeded choice and not the first ones, which here are no copies.
    assert measured["memorisation"] > 0.5


def test_the_seed_decides_the_halves(reference, validation):
    features = reference.extract(validation.images())
    first, again, other = (evaluate_features(features, reference, EvaluateSettings(seed=s)) for s in (0, 0, 1))
    assert first == again
    assert first["frechet_floor"] != other["frechet_floor"]


def test_the_metrics_of_the_settings_are_those_that_are_measured(reference, validation):
    settings = EvaluateSettings.model_validate({"metrics": [{"kind": "precision_recall", "neighbours": 1}]})
    few = evaluate_samples(validation.images(), reference, settings)
    assert set(few) == {"samples", "compared", "precision", "precision_floor", "recall", "recall_floor"}
    assert few["precision"] < evaluate_samples(validation.images(), reference, EvaluateSettings())["precision"]


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_samples_are_refused(reference, count):
    with pytest.raises(UserError, match=r"there are \d samples .* raise sample.count"):
        evaluate_features(np.zeros((count, 64), np.float32), reference, EvaluateSettings())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(reference, value):
    features = reference.train_features[:50].copy()
    features[7, 3] = value
    with pytest.raises(UserError, match="not finite"):
        evaluate_features(features, reference, EvaluateSettings())


def test_a_figure_that_is_not_finite_is_an_error(reference):
    with pytest.raises(ArithmeticError, match="kernel"), np.errstate(over="ignore", invalid="ignore"):
        evaluate_features(
            np.full((50, 64), 1e120),
            reference,
            EvaluateSettings.model_validate({"metrics": [{"kind": "kernel"}]}),
        )


def test_a_new_metric_needs_its_class_alone(reference, validation):
    @dataclass(frozen=True)
    class Spread(Metric):
        figures: ClassVar[tuple[str, ...]] = ("spread", "spread_floor")
        kind: Literal["spread"] = "spread"

        def compute(self, samples, real):
            return {"spread": float(samples.std())}

    settings = EvaluateSettings.model_construct(seed=0, half_size=5_000, metrics=(*every_metric(), Spread()))
    measured = evaluate_samples(validation.images(), reference, settings)
    assert measured["spread"] == pytest.approx(reference.validation_features.std(), rel=1e-4)
    assert {*NAMES, "spread_floor"} < set(measured)


def test_a_metric_that_does_not_name_its_figures_is_refused():
    with pytest.raises(TypeError, match="Nameless must list the names of its values"):
        type("Nameless", (Metric,), {})
