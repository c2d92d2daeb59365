"""The Fréchet distance of two Gaussians, Dowson & Landau 1982, for generated images as in Heusel et al. 2017.

    d^2 = |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1^(1/2) C2 C1^(1/2))^(1/2)        (https://arxiv.org/abs/1706.08500)

The matrix under the last root is symmetric and positive semidefinite, so the trace of its root is the sum of the roots
of its eigenvalues. No matrix is inverted, so there may be fewer images than features.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from diffusion_core.errors import UserError
from diffusion_core.metrics.features import Features
from diffusion_core.metrics.figures.metric import Metric, RealFeatures


@dataclass(frozen=True)
class Frechet(Metric):
    """The squared Fréchet distance between Gaussians fitted to the features of the samples and of real images.

    The estimate has a positive bias that decreases with the number of images. So the samples and the real images of the
    floor are compared with the same half of the training images, in equal numbers if there are enough. `frechet_ratio`,
    the distance divided by its floor, is then about 1 for a perfect model.
    """

    figures: ClassVar[tuple[str, ...]] = ("frechet", "frechet_floor", "frechet_ratio")

    kind: Literal["frechet"] = "frechet"

    def compute(self, samples: Features, real: RealFeatures) -> dict[str, float]:
        """Return `frechet`, at least 0."""
        return {"frechet": frechet_distance(*moments(samples), *moments(real.train_halves[0]))}

    def beside_floor(self, samples: Features, real: RealFeatures) -> dict[str, float]:
        """Return `frechet`, `frechet_floor` and `frechet_ratio`.

        Raises:
            UserError: the floor is 0.
        """
        figures = super().beside_floor(samples, real)
        if figures["frechet_floor"] <= 0.0:
            raise UserError("the two halves of data/prepared have the same features: add images that differ")
        return figures | {"frechet_ratio": figures["frechet"] / figures["frechet_floor"]}


def moments(features: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean, (d,), and the unbiased covariance, (d, d), of features, (n, d), n >= 2."""
    exact = features.astype(np.float64)
    return exact.mean(axis=0), np.atleast_2d(np.cov(exact, rowvar=False))


def frechet_distance(
    mean1: NDArray[np.float64],
    covariance1: NDArray[np.float64],
    mean2: NDArray[np.float64],
    covariance2: NDArray[np.float64],
) -> float:
    """Return d^2 >= 0 of two Gaussians, given by means, (d,), and covariances, (d, d), in float64."""
    values, vectors = np.linalg.eigh(covariance1)
    root = (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T
    product = root @ covariance2 @ root
    overlap = np.sqrt(np.linalg.eigvalsh(0.5 * (product + product.T)).clip(min=0.0)).sum()
    apart = np.square(mean1 - mean2).sum() + np.trace(covariance1) + np.trace(covariance2)
    return float(max(apart - 2.0 * overlap, 0.0))
