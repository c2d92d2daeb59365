"""How samples are measured: one metric a file.

A new metric is a new file beside its siblings, listed in `MetricChoice`.
"""

from diffusion_core.choices import choices
from diffusion_core.metrics.figures.frechet import Frechet
from diffusion_core.metrics.figures.kernel import Kernel
from diffusion_core.metrics.figures.memorisation import Memorisation
from diffusion_core.metrics.figures.precision_recall import PrecisionRecall

MetricChoice = Frechet | Kernel | Memorisation | PrecisionRecall


def every_metric() -> tuple[MetricChoice, ...]:
    """Return all metrics, by name, with the options they have when params.yaml names none."""
    return tuple(metric() for _, metric in sorted(choices(MetricChoice).items()))
