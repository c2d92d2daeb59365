"""Features and pixels as the metrics get them."""

import zlib

import numpy as np

from diffusion_core.metrics.figures.metric import Pictures, Real


def pictures(features, images=None, labels=None):
    """Pictures with these features; without images, each has pixels of noise of its own."""
    features = np.asarray(features)
    if images is None:
        seed = zlib.crc32(features.tobytes())
        images = np.random.default_rng(seed).integers(0, 256, (len(features), 8, 8, 1), dtype=np.uint8)
    return Pictures(features, images.__getitem__, labels)


def against(half):
    """Real images whose halves all have the features `half`."""
    each = pictures(half)
    return Real(each, (each, each), (each, each))


def split(train, validation, half_size, random):
    return Real.split(pictures(train), pictures(validation), half_size, random)
