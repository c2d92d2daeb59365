"""Figures, what they are of, and the key that says what they may be compared with.

`sample` and `evaluate` write beside their outputs what these were made of, so that nobody takes the figures of one
model for another's: not when a stage is run by hand, nor when an output is restored without the others.
"""

from dataclasses import dataclass

from pydantic import BaseModel

from diffusion_core.lineage.provenance import code_digest, json_digest
from diffusion_core.lineage.record import Record

# The code that decides what samples and figures come out; dvc.yaml has it among the dependencies of the two stages.
SAMPLING_CODE = ("generation.py", "networks", "process", "randomness.py", "samplers")
MEASURING_CODE = ("metrics",)


class SamplesOrigin(Record):
    """Which model samples were drawn from, and the key of how."""

    model_digest: str
    sampling_key: str


class FiguresOrigin(Record):
    """Which model figures are of, how its samples were drawn, and the key of their evaluation."""

    model_digest: str
    sampling_key: str
    evaluation_key: str


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a model.

    Attributes:
        key: see `evaluation_key`.
        figures: by name.
    """

    key: str
    figures: dict[str, float]


def sampling_key(sample: BaseModel) -> str:
    """Return the digest of all that samples depend on besides the model: the section `sample`, and the code."""
    return json_digest([sample.model_dump(mode="json"), code_digest(*SAMPLING_CODE)])


def evaluation_key(reference_digest: str, sampling: str, evaluate: BaseModel) -> str:
    """Return the digest of all that figures depend on besides the model.

    Args:
        reference_digest: of the reference.
        sampling: the samples' `sampling_key`.
        evaluate: the section of params.yaml; the code that measures counts too.
    """
    return json_digest([reference_digest, sampling, evaluate.model_dump(mode="json"), code_digest(*MEASURING_CODE)])
