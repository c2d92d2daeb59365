"""Computes the metrics of samples against real images.

The training images are split into two seeded halves, A and B. A metric compares m samples with A. Its floor compares m
images of B with A, so that both have the same bias from a finite number of images. The number m is at most the size of
B; of more samples, a seeded choice is measured. Only memorisation uses all training images, and validation images for
its floor.
"""

import math

import numpy as np

from diffusion_core.config.settings import EvaluateSettings
from diffusion_core.errors import UserError
from diffusion_core.metrics.features import Features, Images
from diffusion_core.metrics.figures.metric import COUNTS, RealFeatures
from diffusion_core.metrics.reference import Reference

DIGITS = 6


def evaluate_samples(images: Images, reference: Reference, settings: EvaluateSettings) -> dict[str, float]:
    """Return the metrics of generated images, uint8 (N, H, W, C), against the reference.

    Returns:
        Each metric by name, its floor as `<name>_floor`, `frechet_ratio`, `samples` (number of samples) and `compared`
        (number of measured samples). All are finite and rounded to six digits. This is more than their accuracy, and
        hides differences between machines.

    Raises:
        UserError: there are fewer than two samples, or too few for a metric.
    """
    return evaluate_features(reference.extract(images), reference, settings)


def evaluate_features(features: Features, reference: Reference, settings: EvaluateSettings) -> dict[str, float]:
    """Return the metrics of `evaluate_samples` from the features of generated images, (N, features).

    Raises:
        UserError: there are fewer than two samples, or too few for a metric, or features are not finite.
        ArithmeticError: a metric is not finite.
    """
    if len(features) < 2:
        raise UserError(f"there are {len(features)} samples and evaluation needs at least 2: raise sample.count")
    if not np.isfinite(features).all():
        raise UserError(
            "the features of the samples are not finite: make data/reference again with a lower reference.learning_rate"
        )
    random = np.random.default_rng(settings.seed)
    real = RealFeatures.split(reference.train_features, reference.validation_features, settings.half_size, random)
    compared = min(len(features), len(real.train_halves[1]))
    chosen = features[random.permutation(len(features))[:compared]]
    figures = dict(zip(COUNTS, (float(len(features)), float(compared)), strict=True))
    for metric in settings.metrics:
        figures |= metric.beside_floor(chosen, real)
    if broken := [name for name, value in figures.items() if not math.isfinite(value)]:
        raise ArithmeticError(f"not finite: {', '.join(broken)}")
    return {name: float(f"{value:.{DIGITS}g}") for name, value in figures.items()}
