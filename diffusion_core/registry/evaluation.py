"""Figures, what they are of, and the key that says what they may be compared with.

`sample` and `evaluate` write beside their outputs what these were made of, so that nobody takes the figures of one
model for another's: not when a stage is run by hand, nor when an output is restored without the others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusion_core.record import Record
from diffusion_core.registry.provenance import json_digest


class SamplesOrigin(Record):
    """Which model samples were drawn from, and the section `sample` they were drawn with."""

    model_digest: str
    sample: dict[str, Any]


class FiguresOrigin(Record):
    """Which model figures are of, and the key of their evaluation."""

    model_digest: str
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


def evaluation_key(reference_digest: str, sample: Mapping[str, Any], evaluate: Mapping[str, Any]) -> str:
    """Return the digest of all that figures depend on besides the model: the reference, the sampling, the measuring.

    Args:
        reference_digest: of the reference.
        sample: the section of params.yaml, as JSON.
        evaluate: likewise.
    """
    return json_digest([reference_digest, sample, evaluate])
