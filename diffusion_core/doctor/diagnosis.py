"""A diagnosis: what a check has found, and what to do."""

from dataclasses import dataclass
from typing import Literal

from diffusion_core.errors import UserError
from diffusion_core.stages.finding import parts

# A warning is of what works, but slowly or not for long; a problem is of what fails.
Verdict = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Diagnosis:
    """What a check has found.

    Attributes:
        verdict: ok, warning or problem.
        sentence: what was found.
        remedy: what to do; "" where nothing is to be done.
    """

    verdict: Verdict
    sentence: str
    remedy: str = ""


def ok(sentence: str) -> Diagnosis:
    """Return the diagnosis of something that is well."""
    return Diagnosis("ok", sentence)


def warning(sentence: str, remedy: str) -> Diagnosis:
    """Return the diagnosis of something that works, but slowly or not for long."""
    return Diagnosis("warning", sentence, remedy)


def problem(sentence: str, remedy: str) -> Diagnosis:
    """Return the diagnosis of something that fails."""
    return Diagnosis("problem", sentence, remedy)


def of_error(error: UserError | OSError) -> Diagnosis:
    """Return an error as a problem; its remedy follows the last colon of its sentence."""
    return problem(*parts(error))
