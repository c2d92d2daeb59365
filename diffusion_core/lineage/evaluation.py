"""Metrics, their origin, and the key that determines which metrics are comparable.

`evaluate` writes the origin of the metrics next to them. So the metrics of one model are never attributed to another,
even if a stage is run by hand or an output is restored without the others.
"""

from typing import TYPE_CHECKING

from diffusion_core.lineage.provenance import code_digest, json_digest
from diffusion_core.lineage.record import Record
from diffusion_core.metrics.estimate import Estimate, flat

if TYPE_CHECKING:
    from diffusion_core.config.settings import EvaluateSettings

# The code that determines metrics; also a dependency of the stage in dvc.yaml.
MEASURING_CODE = ("metrics",)


class Evaluation(Record):
    """The metrics of a model.

    Attributes:
        key: see `evaluation_key`.
        counts: how many samples were made and measured, by name.
        estimates: each metric by name, with its uncertainty.
    """

    key: str
    counts: dict[str, float]
    estimates: dict[str, Estimate]

    @property
    def figures(self) -> dict[str, float]:
        """All values by name, as metrics/evaluate.json has them."""
        return self.counts | flat(self.estimates)


class FiguresOrigin(Record):
    """The origin of metrics.

    Attributes:
        model_digest: digest of the measured model.
        sampling_key: of the measured samples; see `lineage/samples.py`.
        evaluation: the metrics.
    """

    model_digest: str
    sampling_key: str
    evaluation: Evaluation


def evaluation_key(reference_digest: str, sampling: str, evaluate: "EvaluateSettings") -> str:
    """Return the digest of everything that determines metrics except the model, including the code of the metrics.

    Args:
        reference_digest: digest of the reference.
        sampling: the `sampling_key` of the samples.
        evaluate: the section `evaluate` of params.yaml.
    """
    extractors = [each.sha256 for each in evaluate.extractors]
    options = evaluate.model_dump(mode="json")
    return json_digest([reference_digest, sampling, options, extractors, code_digest(*MEASURING_CODE)])
