"""The real digits at another size, and the distance of samples from them."""

import tempfile
from contextlib import chdir

import numpy as np
from numpy.typing import NDArray

from diffusion_core.config.environment import Environment
from diffusion_core.config.params import load_settings
from diffusion_core.data.dataset import ImageDataset
from diffusion_core.metrics.features import Features
from diffusion_core.metrics.figures.frechet import Frechet
from diffusion_core.metrics.figures.metric import Pictures, Real
from diffusion_core.metrics.reference import Reference, fit_reference
from diffusion_core.stages import ingest, prepare
from diffusion_core.stages.paths import PREPARED


def training_digits(size: int) -> tuple[NDArray[np.uint8], Reference]:
    """Return the training images, uint8 (N, size, size, 1), and their reference with the settings of params.yaml."""
    settings = load_settings()
    # The stages use the working directory.
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        ingest.run(settings.ingest, Environment())
        prepare.run(settings.prepare.model_copy(update={"image_size": (size, size)}))
        train, validation = ImageDataset.open(PREPARED, "train"), ImageDataset.open(PREPARED, "validation")
        return train.images(), fit_reference(train, validation, settings.reference)


def frechet_distance(samples: NDArray[np.uint8], reference: Reference) -> tuple[float, float]:
    """Return the Fréchet distance in domain features of images, (N, H, W, 1), and that of two halves of the digits."""

    def of(features: Features) -> Pictures:
        # The distance looks at no pixels.
        return Pictures(features, samples.__getitem__)

    random = np.random.default_rng(0)
    real = Real.split(of(reference.train_features), of(reference.validation_features), 5000, random)
    count = len(real.train_halves[1])
    chosen = random.permutation(len(samples))[:count]
    pictures = (of(reference.extract(samples[chosen])), real.train_halves[1].take(np.arange(len(chosen))))
    found, floor = (Frechet().compute(each, real)["frechet"] for each in pictures)
    return found, floor
