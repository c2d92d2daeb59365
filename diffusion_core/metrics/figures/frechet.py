"""The Fréchet distance of two Gaussians, Dowson & Landau 1982, for generated images as in Heusel et al. 2017.

    d^2 = |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1^(1/2) C2 C1^(1/2))^(1/2)        (https://arxiv.org/abs/1706.08500)

The matrix under the last root is symmetric and positive semidefinite, so the trace of its root is the sum of the roots
of its eigenvalues. No matrix is inverted, so there may be fewer images than features.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from diffusion_core.errors import UserError
from diffusion_core.metrics.estimate import Estimate
from diffusion_core.metrics.features import Features
from diffusion_core.metrics.figures.metric import Metric, Pictures, Real, Values


@dataclass(frozen=True)
class Frechet(Metric):
    """The squared Fréchet distance between Gaussians fitted to the features of the samples and of real images.

    The estimate has a positive bias that decreases with the number of images. So the samples and the real images of the
    floor are compared with the same half of the training images, in equal numbers if there are enough. `frechet_ratio`,
    the distance divided by its floor, is then about 1 for a perfect model.
    """

    figures: ClassVar[tuple[str, ...]] = ("frechet", "frechet_ratio")

    kind: Literal["frechet"] = "frechet"

    def against(self, real: Real) -> Callable[[Pictures], Values]:
        """Return `frechet`, at least 0, as a function of samples."""
        distance = frechet_distance_to(*moments(real.train_halves[0].features))
        return lambda samples: lambda kept: {"frechet": distance(*moments(samples.features[kept]))}

    def derived(self, estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
        """Return `frechet_ratio`.

        Raises:
            UserError: the floor is 0.
        """
        frechet = estimates["frechet"]
        if not frechet.floor:
            raise UserError("the two halves of data/prepared have the same features: add images that differ")
        return {"frechet_ratio": frechet.in_units_of(frechet.floor)}


@dataclass(frozen=True)
class Fid(Metric):
    """The Fréchet distance of all samples to all training images, as it is published.

    With the features of Inception-v3, and images resized as clean-fid does, it is FID. Its value depends on the number
    of samples, which is 50,000 in most papers. Its floor is that of half of the validation images, however few.
    """

    figures: ClassVar[tuple[str, ...]] = ("fid",)

    def against(self, real: Real) -> Callable[[Pictures], Values]:
        """Return `fid`, at least 0, as a function of samples."""
        distance = frechet_distance_to(*moments(real.train.features))
        return lambda samples: lambda kept: {"fid": distance(*moments(samples.features[kept]))}

    def stand_ins(self, real: Real) -> Pictures:
        """Return one half of the validation images."""
        return real.validation_halves[0]


def moments(features: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean, (d,), and the unbiased covariance, (d, d), of features, (n, d), n >= 2."""
    exact = features.astype(np.float64)
    return exact.mean(axis=0), np.atleast_2d(np.cov(exact, rowvar=False))


def frechet_distance_to(
    mean1: NDArray[np.float64], covariance1: NDArray[np.float64]
) -> Callable[[NDArray[np.float64], NDArray[np.float64]], float]:
    """Return d^2 >= 0 of this Gaussian as a function of mean, (d,), and covariance, (d, d), of another, in float64."""
    values, vectors = np.linalg.eigh(covariance1)
    root = (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T

    def distance(mean2: NDArray[np.float64], covariance2: NDArray[np.float64]) -> float:
        product = root @ covariance2 @ root
        overlap = np.sqrt(np.linalg.eigvalsh(0.5 * (product + product.T)).clip(min=0.0)).sum()
        apart = np.square(mean1 - mean2).sum() + np.trace(covariance1) + np.trace(covariance2)
        return float(max(apart - 2.0 * overlap, 0.0))

    return distance


def frechet_distance(
    mean1: NDArray[np.float64],
    covariance1: NDArray[np.float64],
    mean2: NDArray[np.float64],
    covariance2: NDArray[np.float64],
) -> float:
    """Return d^2 >= 0 of two Gaussians, given by means, (d,), and covariances, (d, d), in float64."""
    return frechet_distance_to(mean1, covariance1)(mean2, covariance2)
