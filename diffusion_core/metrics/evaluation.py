"""Computes the metrics of samples against real images, each with its uncertainty.

The training images are split into two seeded halves, A and B. A metric compares m samples with A. Its floor compares m
images of B with A, so that both have the same bias from a finite number of images; its ceiling compares m images of
noise. The number m is at most the size of B; of more samples, a seeded choice is measured. Only memorisation and
class entropy use all training images, and validation images for their floors.
"""

import math
from dataclasses import dataclass

import numpy as np

from diffusion_core.config.settings import EvaluateSettings
from diffusion_core.data.dataset import ImageDataset
from diffusion_core.errors import UserError
from diffusion_core.metrics.estimate import GROUPS, Estimate
from diffusion_core.metrics.features import Features, Images
from diffusion_core.metrics.figures.metric import COUNTS, Metric, Pictures, Real
from diffusion_core.metrics.reference import Reference

# Two images are left without each group of one.
FEWEST_SAMPLES = 3


@dataclass(frozen=True)
class Evaluated:
    """The metrics of samples.

    Attributes:
        estimates: each metric by name.
        counts: `sample_count`, the number of samples, and `compared_count`, the number of measured samples.
        features: of all samples, (N, features).
    """

    estimates: dict[str, Estimate]
    counts: dict[str, float]
    features: Features

    @property
    def lines(self) -> list[str]:
        """A line for each metric: its value, 95% interval, floor and ceiling."""
        return [f"{name} {value:g}" for name, value in self.counts.items()] + [
            f"{name} {each.value:.4g} +- {each.half_width:.2g} (real images {each.floor:.4g}, noise {each.ceiling:.4g})"
            for name, each in self.estimates.items()
        ]


def evaluate_samples(
    images: Images, reference: Reference, train: ImageDataset, validation: ImageDataset, settings: EvaluateSettings
) -> Evaluated:
    """Return the metrics of generated images, uint8 (N, H, W, C).

    Args:
        images: the samples.
        reference: extractor, and features of the real images.
        train: the training images, in the order of the reference's features.
        validation: the validation images, likewise.
        settings: the section `evaluate` of params.yaml.

    Raises:
        UserError: there are fewer than three samples, or too few for a metric, or their features are not finite.
        ArithmeticError: a metric is not finite.
    """
    noise = noise_beside(images, train, settings)
    features = reference.extract(np.concatenate((images, noise)))
    return evaluate_features(features, images, noise, reference, train, validation, settings)


def noise_beside(images: Images, train: ImageDataset, settings: EvaluateSettings) -> Images:
    """Return noise of the settings' seed, as many images as are measured, for the ceilings.

    Raises:
        UserError: there are fewer than three samples.
    """
    if len(images) < FEWEST_SAMPLES:
        raise UserError(
            f"there are {len(images)} samples and evaluation needs at least {FEWEST_SAMPLES}: raise sample.count"
        )
    count = min(len(images), len(train) // 2, settings.half_size)
    return np.random.default_rng((settings.seed, 1)).integers(0, 256, (count, *images.shape[1:]), dtype=np.uint8)


def evaluate_features(
    features: Features,
    images: Images,
    noise: Images,
    reference: Reference,
    train: ImageDataset,
    validation: ImageDataset,
    settings: EvaluateSettings,
) -> Evaluated:
    """Return the metrics of `evaluate_samples` from the features of images and noise, (N + n, features).

    Raises:
        UserError: there are too few samples for a metric, or features are not finite.
        ArithmeticError: a metric is not finite.
    """
    if not np.isfinite(features).all():
        raise UserError(
            "the features of the samples are not finite: make data/reference again with a lower reference.learning_rate"
        )
    random = np.random.default_rng(settings.seed)
    real = Real.split(
        Pictures(reference.train_features, train.images, train.labels),
        Pictures(reference.validation_features, validation.images, validation.labels),
        settings.half_size,
        random,
    )
    chosen = random.permutation(len(images))[: len(noise)]
    samples = Pictures(features[: len(images)], images.__getitem__).take(chosen)
    ceiling = Pictures(features[len(images) :], noise.__getitem__)
    estimates: dict[str, Estimate] = {}
    for metric in settings.metrics:
        estimates |= estimated(metric, samples, real, ceiling)
    if broken := [name for name, each in estimates.items() if not _is_finite(each)]:
        raise ArithmeticError(f"not finite: {', '.join(broken)}")
    counts = dict(zip(COUNTS, (float(len(images)), float(len(noise))), strict=True))
    return Evaluated(estimates, counts, features[: len(images)])


def estimated(metric: Metric, samples: Pictures, real: Real, noise: Pictures) -> dict[str, Estimate]:
    """Return the values of a metric by name, with their replicates, floors and ceilings.

    Raises:
        UserError: there are too few images, or two halves of the real images are the same.
    """
    figures = metric.over(samples, real)
    groups = min(GROUPS, len(samples))
    # Neighbours in the order of the samples are in different groups, so each group has images of all classes.
    group = np.arange(len(samples)) % groups
    values = figures(np.full(len(samples), True))
    replicates = [figures(group != number) for number in range(groups)]
    floors = metric.compute(_first(metric.stand_ins(real), len(samples)), real)
    ceilings = metric.compute(noise, real)
    estimates = {
        name: Estimate(
            value=value,
            replicates=tuple(each[name] for each in replicates),
            floor=floors[name],
            ceiling=ceilings[name],
        )
        for name, value in values.items()
    }
    return {name: each.rounded() for name, each in (estimates | metric.derived(estimates)).items()}


def _first(pictures: Pictures, count: int) -> Pictures:
    return pictures.take(np.arange(min(count, len(pictures))))


def _is_finite(estimate: Estimate) -> bool:
    values = (estimate.value, *estimate.replicates, estimate.floor, estimate.ceiling)
    return all(value is None or math.isfinite(value) for value in values)
