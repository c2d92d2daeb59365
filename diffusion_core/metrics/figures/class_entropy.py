"""How evenly the samples are spread over the classes: the entropy of the classes that they look like."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from diffusion_core.metrics.figures.metric import Kept, Metric, Pictures, Real, Values
from diffusion_core.metrics.neighbours import nearest


@dataclass(frozen=True)
class ClassEntropy(Metric):
    """The entropy of the classes of the samples as a share of the largest, in [0, 1].

    With p_c the share of samples whose nearest training image is of class c, of C classes,

        H = -sum_c p_c log p_c / log C

    Samples of one class alone give 0, as many of each class 1. Its floor is that of real images. It is left out where
    there are fewer than two classes.
    """

    figures: ClassVar[tuple[str, ...]] = ("class_entropy",)

    kind: Literal["class_entropy"] = "class_entropy"

    def against(self, real: Real) -> Callable[[Pictures], Values]:
        """Return `class_entropy` as a function of samples."""
        labels = real.train.labels
        if labels is None or len(np.unique(labels)) < 2:
            return lambda _: lambda _: {}
        most = np.log(len(np.unique(labels)))

        def of(samples: Pictures) -> Values:
            classes = labels[nearest(samples.features, real.train.features).indices[:, 0]]

            def entropy(kept: Kept) -> dict[str, float]:
                shares = np.unique(classes[kept], return_counts=True)[1] / kept.sum()
                # 0.0, because one class alone would give a negative zero.
                return {"class_entropy": 0.0 - float((shares * np.log(shares)).sum() / most)}

            return entropy

        return of

    def stand_ins(self, real: Real) -> Pictures:
        """Return the second half of the validation images: a training image is its own nearest."""
        return real.validation_halves[1]
