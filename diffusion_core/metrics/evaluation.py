"""Samples beside real images, in figures.

What is compared with what: the training images are cut into two seeded halves, A and B. A metric compares m samples
with A; its floor compares m images of B with A, so that the bias which an estimate from few images has is the same on
both sides. m is the number of samples, or the size of B where there are more samples than that: a seeded choice of
them is then measured. Memorisation alone looks at all training images and takes its floor from validation images.
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
    """Measure generated images, uint8 (N, H, W, C), against the reference.

    Returns:
        Every figure by its name, its floor as `<name>_floor`, `frechet_ratio`, `samples` (how many there are) and
        `compared` (how many of them were measured); all finite, and rounded to six digits, which is more than any of
        them means and less than what differs between machines.

    Raises:
        UserError: there are fewer than two samples, or too few for a metric.
    """
    return evaluate_features(reference.extract(images), reference, settings)


def evaluate_features(features: Features, reference: Reference, settings: EvaluateSettings) -> dict[str, float]:
    """Measure the features of generated images, (N, features), as `evaluate_samples` does."""
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
