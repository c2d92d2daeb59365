"""Metrics of samples, one per file.

To add a metric, add a file here and list its class in `MetricChoice`.
"""

from diffusion_core.choices import choices
from diffusion_core.metrics.figures.class_entropy import ClassEntropy
from diffusion_core.metrics.figures.frechet import Frechet
from diffusion_core.metrics.figures.kernel import Kernel
from diffusion_core.metrics.figures.memorisation import Memorisation
from diffusion_core.metrics.figures.precision_recall import PrecisionRecall

MetricChoice = ClassEntropy | Frechet | Kernel | Memorisation | PrecisionRecall


def every_metric() -> tuple[MetricChoice, ...]:
    """Return all metrics with default options, sorted by name."""
    return tuple(metric() for _, metric in sorted(choices(MetricChoice).items()))
