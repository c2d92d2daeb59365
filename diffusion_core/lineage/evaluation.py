"""Metrics, their origin, and the key that determines which metrics are comparable.

`sample` and `evaluate` write the origin of their outputs next to them. So the metrics of one model are never attributed
to another, even if a stage is run by hand or an output is restored without the others.
"""

from dataclasses import dataclass

from pydantic import BaseModel

from diffusion_core.lineage.provenance import code_digest, json_digest
from diffusion_core.lineage.record import Record

# The code that determines samples and metrics; also dependencies of the two stages in dvc.yaml.
SAMPLING_CODE = ("generation.py", "networks", "process", "randomness.py", "samplers")
MEASURING_CODE = ("metrics",)


class SamplesOrigin(Record):
    """The origin of samples.

    Attributes:
        model_digest: digest of the sampled model.
        sampling_key: see `sampling_key`.
    """

    model_digest: str
    sampling_key: str


class FiguresOrigin(Record):
    """The origin of metrics.

    Attributes:
        model_digest: digest of the measured model.
        sampling_key: see `sampling_key`.
        evaluation_key: see `evaluation_key`.
    """

    model_digest: str
    sampling_key: str
    evaluation_key: str


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a model.

    Attributes:
        key: see `evaluation_key`.
        figures: the value of each metric by name.
    """

    key: str
    figures: dict[str, float]


def sampling_key(sample: BaseModel) -> str:
    """Return the digest of everything that determines samples except the model: the section `sample` and the code."""
    return json_digest([sample.model_dump(mode="json"), code_digest(*SAMPLING_CODE)])


def evaluation_key(reference_digest: str, sampling: str, evaluate: BaseModel) -> str:
    """Return the digest of everything that determines metrics except the model, including the code of the metrics.

    Args:
        reference_digest: digest of the reference.
        sampling: the `sampling_key` of the samples.
        evaluate: the section `evaluate` of params.yaml.
    """
    return json_digest([reference_digest, sampling, evaluate.model_dump(mode="json"), code_digest(*MEASURING_CODE)])
