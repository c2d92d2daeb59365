"""Computes the metrics of samples against real images, each with its uncertainty.

The training images are split into two seeded halves, A and B. A metric compares m samples with A. Its floor compares m
images of B with A, so that both have the same bias from a finite number of images; its ceiling compares m images of
noise. The number m is at most the size of B; of more samples, a seeded choice is measured. Only memorisation and
class entropy use all training images, and validation images for their floors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffusion_core.config.settings import EvaluateSettings
from diffusion_core.data.dataset import ImageDataset
from diffusion_core.errors import UserError
from diffusion_core.metrics.estimate import GROUPS, Estimate
from diffusion_core.metrics.features import Extractor, Features, Images, extract
from diffusion_core.metrics.figures.metric import COUNTS, Metric, Pictures, Real, prefixed
from diffusion_core.progress import Progress
from diffusion_core.runtime.distributed import Ranks

# Two images are left without each group of one.
FEWEST_SAMPLES = 3


@dataclass(frozen=True)
class Evaluated:
    """The metrics of samples.

    Attributes:
        estimates: each metric by name.
        counts: `sample_count`, the number of samples, and `compared_count`, the number of measured samples.
    """

    estimates: dict[str, Estimate]
    counts: dict[str, float]

    @property
    def lines(self) -> list[str]:
        """A line for each metric: its value, 95% interval, floor and ceiling."""
        return [f"{name} {value:g}" for name, value in self.counts.items()] + [
            f"{name} {each.value:.4g} +- {each.half_width:.2g} (real images {each.floor:.4g}, noise {each.ceiling:.4g})"
            for name, each in self.estimates.items()
        ]


@dataclass(frozen=True, eq=False)
class View:
    """The real images as an extractor sees them.

    Attributes:
        name: what the names of its metrics begin with; empty for the domain's own extractor.
        extractor: the network.
        train: features of the training images, in the dataset's order.
        validation: features of the validation images, likewise.
        more: metrics that are computed of all samples, beside those of the settings.
    """

    name: str
    extractor: Extractor
    train: Features
    validation: Features
    more: tuple[Metric, ...] = ()


class Evaluator:
    """Measures samples against real images.

    Args:
        views: the real images as each extractor sees them, the domain's own first.
        train: the training images.
        validation: the validation images.
        settings: the section `evaluate` of params.yaml.
    """

    def __init__(
        self, views: Sequence[View], train: ImageDataset, validation: ImageDataset, settings: EvaluateSettings
    ) -> None:
        self.views = views
        self.train = train
        self.validation = validation
        self.settings = settings
        # Features of so much noise, which a second evaluation needs again.
        self._of_noise: dict[int, list[Features]] = {}

    def evaluate(self, images: Images) -> Evaluated:
        """Return the metrics of generated images, uint8 (N, H, W, C).

        Raises:
            UserError: there are fewer than three samples, or too few for a metric, or it or features are not finite.
        """
        return self.measure(images, self.extract(images))

    def extract(
        self,
        images: Images,
        ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    ) -> list[Features]:
        """Return the features of the images and then of noise for the ceilings, (N + n, features), of each view.

        Noise is of the settings' seed, as many images as are measured. Of several processes, only the main one returns
        all features.

        Raises:
            UserError: there are fewer than three samples.
        """
        if len(images) < FEWEST_SAMPLES:
            raise UserError(
                f"there are {len(images)} samples and evaluation needs at least {FEWEST_SAMPLES}: raise sample.count"
            )
        noise = self._noise(images)
        if len(noise) not in self._of_noise:
            self._of_noise[len(noise)] = self._features(noise, "features of noise", ranks)
        found = self._features(images, "features of samples", ranks)
        return [np.concatenate(both) for both in zip(found, self._of_noise[len(noise)], strict=True)]

    def measure(self, images: Images, features: Sequence[Features]) -> Evaluated:
        """Return the metrics of images with what `extract` returns of them.

        Raises:
            UserError: there are too few samples for a metric, or features or a metric are not finite.
        """
        noise = self._noise(images)
        estimates: dict[str, Estimate] = {}
        count = sum(len(self.settings.metrics) + len(view.more) for view in self.views)
        progress = Progress("evaluate", count, "metrics")
        for view, found in zip(self.views, features, strict=True):
            if not np.isfinite(found).all():
                raise UserError(
                    "the features of the samples are not finite: make data/reference again with a lower"
                    " reference.learning_rate, or name another file in evaluate.extractors"
                )
            # The same halves and the same samples for each view.
            random = np.random.default_rng(self.settings.seed)
            real = Real.split(
                Pictures(view.train, self.train.images, self.train.labels),
                Pictures(view.validation, self.validation.images, self.validation.labels),
                self.settings.half_size,
                random,
            )
            # In random order, so that the groups of the intervals are alike; the samples' classes alternate.
            samples = Pictures(found[: len(images)], images.__getitem__).take(random.permutation(len(images)))
            chosen = samples.take(np.arange(len(noise)))
            ceiling = Pictures(found[len(images) :], noise.__getitem__)
            own: dict[str, Estimate] = {}
            for metric in self.settings.metrics:
                own |= estimated(metric, chosen, real, ceiling)
                progress.add(1)
            for whole in view.more:
                own |= estimated(whole, samples, real, ceiling)
                progress.add(1)
            estimates |= {prefixed(view.name, name): each for name, each in own.items()}
        progress.close()
        if broken := [name for name, each in estimates.items() if not _is_finite(each)]:
            raise UserError(
                f"{', '.join(broken)} of the samples is not finite, as their features are too large: make"
                " data/reference again with a lower reference.learning_rate, or name another extractor"
            )
        counts = dict(zip(COUNTS, (float(len(images)), float(len(noise))), strict=True))
        return Evaluated(estimates, counts)

    def _features(self, images: Images, title: str, ranks: Ranks) -> list[Features]:
        with Progress(title, len(images) * len(self.views), "images", is_shown=ranks.is_main) as progress:
            return [extract(view.extractor, images, ranks=ranks, progress=progress) for view in self.views]

    def _noise(self, images: Images) -> Images:
        count = min(len(images), len(self.train) // 2, self.settings.half_size)
        random = np.random.default_rng((self.settings.seed, 1))
        return random.integers(0, 256, (count, *images.shape[1:]), dtype=np.uint8)


def estimated(metric: Metric, samples: Pictures, real: Real, noise: Pictures) -> dict[str, Estimate]:
    """Return the values of a metric by name, with their replicates, floors and ceilings.

    Raises:
        UserError: there are too few images, or two halves of the real images are the same.
    """
    against = metric.against(real)
    figures = against(samples)
    groups = min(GROUPS, len(samples))
    group = np.arange(len(samples)) % groups
    values = figures(np.full(len(samples), True))
    replicates = [figures(group != number) for number in range(groups)]
    floors, ceilings = (
        against(each)(np.full(len(each), True)) for each in (_first(metric.stand_ins(real), len(samples)), noise)
    )
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
    return all(map(math.isfinite, values))
