"""Figures, and the key that says what they may be compared with."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from diffusion_core.errors import UserError
from diffusion_core.registry.provenance import json_digest
from diffusion_core.settings import EvaluateSettings, SampleSettings


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a model.

    Attributes:
        key: digest of all that the figures depend on besides the model: the reference, the sampling and the measuring.
        figures: by name.
    """

    key: str
    figures: dict[str, float]


class _Description(BaseModel):
    digest: str


def read_evaluation(
    figures_file: Path, reference_description: Path, sample: SampleSettings, evaluate: EvaluateSettings
) -> Evaluation:
    """Read the figures that `evaluate` wrote, and make their key.

    Raises:
        UserError: a file does not hold what its stage writes.
    """
    try:
        figures = TypeAdapter(dict[str, float]).validate_json(figures_file.read_bytes())
    except ValidationError:
        raise _damaged(figures_file, "evaluate") from None
    try:
        reference = _Description.model_validate_json(reference_description.read_bytes())
    except ValidationError:
        raise _damaged(reference_description, "reference") from None
    sections = [settings.model_dump(mode="json") for settings in (sample, evaluate)]
    return Evaluation(json_digest([reference.digest, *sections]), figures)


def _damaged(file: Path, stage: str) -> UserError:
    return UserError(f"{file} is damaged: make it anew with `dvc repro --force --single-item {stage}`")
