"""Measures whether the model copies its training images, by features and by pixels.

Validation images say how near an image comes to a training image by chance. A sample is a copy if it is nearer by its
features, or by the structural similarity of its pixels (SSIM, Wang et al. 2004,
https://doi.org/10.1109/TIP.2003.819861). Each of the two limits is a quantile of those of validation images. So about a
share q of the samples of a model that does not copy is a copy; of a model that copies, nearly all. Meehan, Chaudhuri &
Dasgupta 2020 (https://arxiv.org/abs/2004.05675) compare samples and held-out images in this way.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import adaptive_avg_pool2d

from diffusion_core.metrics.features import Features, Images, spans
from diffusion_core.metrics.figures.metric import Metric, Pictures, Real, Values
from diffusion_core.metrics.neighbours import nearest

# Candidates for the most similar training image are those with the nearest thumbnails.
THUMBNAIL = 8
# Images of which thumbnails are made at a time.
BLOCK = 4096
WINDOW = 7
# Copies of an image that a dataset may have, and one more.
FEW = 8


@dataclass(frozen=True)
class Memorisation(Metric):
    """The share of samples, in [0, 1], that are nearer to a training image than nearly all validation images.

    It uses all training images. The limits are those of one half of the validation images. The other half gives the
    floor, which is about q by construction.

    Attributes:
        quantile: q, in (0, 1); half of it for the features, half for the pixels.
    """

    figures: ClassVar[tuple[str, ...]] = ("memorisation",)

    kind: Literal["memorisation"] = "memorisation"
    quantile: float = 0.05

    def __post_init__(self) -> None:
        if not 0.0 < self.quantile < 1.0:
            raise ValueError(f"quantile is {self.quantile}; it must lie between 0 and 1")

    def against(self, real: Real) -> Callable[[Pictures], Values]:
        """Return `memorisation`, in [0, 1], as a function of samples."""
        train, small = real.train, _thumbnails(real.train)
        # Of validation images that equal a training image, the nearest one that differs counts.
        distances, similarities = _nearness(real.validation_halves[0], train, small, above=0.0)
        limit = np.quantile(distances, self.quantile / 2)
        similar = np.quantile(similarities, 1.0 - self.quantile / 2)

        def of(samples: Pictures) -> Values:
            distances, similarities = _nearness(samples, train, small, above=-1.0)
            copied = (distances <= limit) | (similarities >= similar)
            return lambda kept: {"memorisation": float(copied[kept].mean())}

        return of

    def stand_ins(self, real: Real) -> Pictures:
        """Return the second half of the validation images."""
        return real.validation_halves[1]


def _nearness(
    pictures: Pictures, train: Pictures, small: Features, above: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the distance of each picture's features to the nearest training image, and its largest SSIM to one.

    SSIM is computed for two training images: that with the nearest features, and that with the nearest thumbnail.

    Args:
        pictures: n images.
        train: the training images.
        small: their thumbnails.
        above: only training images at a larger distance count.
    """
    distances, rows = _nearest_above(pictures.features, train.features, above)
    _, others = _nearest_above(_thumbnails(pictures), small, above)
    similarities = []
    for span in spans(len(pictures), BLOCK):
        images = pictures.pixels(np.arange(len(pictures))[span])
        near = [_similarity(images, train.pixels(each[span])) for each in (rows, others)]
        similarities.append(np.maximum(*near))
    return distances, np.concatenate(similarities)


def _nearest_above(points: Features, among: Features, above: float) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return distance and row of the nearest at a distance above `above`, of the few nearest; else the last of them."""
    found = nearest(points, among, min(FEW, len(among)))
    first = np.where((found.distances > above).any(axis=1), (found.distances > above).argmax(axis=1), -1)
    chosen = np.arange(len(points)), first
    return found.distances[chosen], found.indices[chosen]


def _similarity(images: Images, others: Images) -> NDArray[np.float64]:
    """Return the SSIM of pairs of images, uint8 (n, H, W, C): (n,)."""
    # Imported here, because every command reads the names of the metrics, and few compute one.
    from skimage.metrics import structural_similarity

    return np.array(
        [
            structural_similarity(one, other, win_size=WINDOW, channel_axis=-1)  # type: ignore[no-untyped-call]
            for one, other in zip(images, others, strict=True)
        ]
    )


def _thumbnails(pictures: Pictures) -> Features:
    """Return the images, averaged to 8 x 8 pixels, as float32 (n, 64 C)."""
    rows = np.arange(len(pictures))
    parts = [
        adaptive_avg_pool2d(torch.from_numpy(pictures.pixels(rows[span])).permute(0, 3, 1, 2).float(), THUMBNAIL)
        for span in spans(len(rows), BLOCK)
    ]
    return torch.cat(parts).flatten(1).numpy()
