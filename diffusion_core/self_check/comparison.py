"""Compares two computations of the same values, with the tolerances."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# Values by name, on the host: the loss, the network's output, and each parameter's gradient.
Values = Mapping[str, Tensor]
GRADIENT = "the gradient of "

# Allowed error: `FACTOR` times that of eager steps in the same precision, plus `TOLERANCE` relative to the value.
FACTOR = 3.0
TOLERANCE = {torch.float32: 5e-3, torch.bfloat16: 0.1}
# Allowed relative error of a low precision, for the loss, the output and the whole gradient.
PRECISION_LIMIT = 0.3


@dataclass(frozen=True)
class Verdict:
    """The result of comparing one way of computing with eager float32.

    Attributes:
        way: how the values were computed.
        passed: whether every error is within its limit.
        worst: the value with the greatest ratio of error to limit: output, loss, or a parameter's gradient.
        error: the error of that value, relative to its norm.
        allowed: the limit of that error.
        problem: why there was no comparison, or "".
    """

    way: str
    passed: bool
    worst: str = ""
    error: float = 0.0
    allowed: float = 0.0
    problem: str = ""

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "FAILED"
        if self.problem:
            return f"{self.way}: {verdict}, {self.problem}"
        return f"{self.way}: {verdict}, {self.worst} is off by {self.error:.2g} where {self.allowed:.2g} is allowed"


def cannot_run(way: str, error: Exception) -> Verdict:
    """Return the verdict of a way that raised an error."""
    return Verdict(way, False, problem=f"cannot run ({' '.join(str(error).split())[:500]})")


def compare(way: str, reference: Values, eager: Values, run: Values, tolerance: float) -> Verdict:
    """Return whether the error of each value of `run` is within the limit.

    Args:
        way: how `run` was computed.
        reference: values in eager float32.
        eager: values in the precision of `run`, computed eagerly.
        run: the values to check.
        tolerance: see `TOLERANCE`.
    """
    least = _least(reference)
    errors = {name: _error(reference[name], run[name], least) for name in run}
    allowed = {name: FACTOR * _error(reference[name], eager[name], least) + tolerance for name in run}
    return _verdict(way, errors, allowed)


def judge_precision(way: str, reference: Values, eager: Values) -> Verdict:
    """Return whether loss, output and the whole gradient in a precision are within `PRECISION_LIMIT`."""

    gradients = [name for name in reference if name.startswith(GRADIENT)]
    errors = {name: _error(reference[name], eager[name], 0.0) for name in reference if name not in gradients}
    if gradients:
        # By parameter, because a concatenated copy would be as large as the network.
        distance = math.hypot(*(_distance(reference[name], eager[name]) for name in gradients))
        errors["the gradient"] = distance / max(math.hypot(*(_norm(reference[name]) for name in gradients)), 1e-30)
    return _verdict(way, errors, dict.fromkeys(errors, PRECISION_LIMIT))


def _verdict(way: str, errors: Mapping[str, float], allowed: Mapping[str, float]) -> Verdict:
    """Return the verdict of the worst value; a value or limit that is not finite is the worst."""

    def badness(name: str) -> float:
        sound = math.isfinite(errors[name]) and math.isfinite(allowed[name])
        return errors[name] / allowed[name] if sound else math.inf

    worst = max(errors, key=badness)
    return Verdict(way, badness(worst) <= 1.0, worst, errors[worst], allowed[worst])


def _least(reference: Values) -> float:
    """Return the norm below which a gradient counts as zero, for example of labels that are not in the batch."""
    return 1e-7 * math.hypot(*(_norm(each) for name, each in reference.items() if name.startswith(GRADIENT)))


def _error(true: Tensor, value: Tensor, least: float) -> float:
    """Return the distance relative to the norm of the true value; infinite if it is NaN."""
    return _distance(true, value) / max(_norm(true), least, 1e-30)


def _distance(true: Tensor, value: Tensor) -> float:
    distance = _norm(value.double() - true.double())
    return math.inf if math.isnan(distance) else distance


def _norm(value: Tensor) -> float:
    return float(value.double().norm())
