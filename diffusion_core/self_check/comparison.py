"""How far two ways of computing the same values may be apart, and what came of comparing them."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

# Values by name, on the host: the loss, the network's output, and each parameter's gradient.
Values = Mapping[str, Tensor]
GRADIENT = "the gradient of "

# How many times the error of eager steps in the same precision may be exceeded, plus a share of the value itself.
FACTOR = 3.0
TOLERANCE = {torch.float32: 5e-3, torch.bfloat16: 0.1}
# What a sound low precision may do to the loss, to the output and to the gradient as a whole.
PRECISION_LIMIT = 0.3


@dataclass(frozen=True)
class Verdict:
    """What came of comparing one way of computing with eager float32.

    Attributes:
        way: how it was computed.
        passed: whether its error is explained by the precision.
        worst: the value whose error is largest beside what is allowed: output, loss, or a parameter's gradient.
        error: of that value, relative to its norm.
        allowed: the error that precision explains.
        problem: why nothing could be compared, or "".
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
    """Return the verdict on what raised an error."""
    return Verdict(way, False, problem=f"cannot run ({' '.join(str(error).split())[:500]})")


def compare(way: str, reference: Values, eager: Values, run: Values, tolerance: float) -> Verdict:
    """Return whether each value of `run` is as near to the reference as precision, which `eager` shows, lets it be."""
    least = _least(reference)
    errors = {name: _error(reference[name], run[name], least) for name in run}
    allowed = {name: FACTOR * _error(reference[name], eager[name], least) + tolerance for name in run}
    return _verdict(way, errors, allowed)


def judge_precision(way: str, reference: Values, eager: Values) -> Verdict:
    """Return whether a precision computes a step at all: its loss, its output and its gradient as a whole."""

    gradients = [name for name in reference if name.startswith(GRADIENT)]
    errors = {name: _error(reference[name], eager[name], 0.0) for name in reference if name not in gradients}
    if gradients:
        # Parameter by parameter, because a copy of all of them is as large as the network.
        distance = math.hypot(*(_distance(reference[name], eager[name]) for name in gradients))
        errors["the gradient"] = distance / max(math.hypot(*(_norm(reference[name]) for name in gradients)), 1e-30)
    return _verdict(way, errors, dict.fromkeys(errors, PRECISION_LIMIT))


def _verdict(way: str, errors: Mapping[str, float], allowed: Mapping[str, float]) -> Verdict:
    """Return the verdict on the worst value; one that is no number, or has no sound limit, is worse than any."""

    def badness(name: str) -> float:
        sound = math.isfinite(errors[name]) and math.isfinite(allowed[name])
        return errors[name] / allowed[name] if sound else math.inf

    worst = max(errors, key=badness)
    return Verdict(way, badness(worst) <= 1.0, worst, errors[worst], allowed[worst])


def _least(reference: Values) -> float:
    """Return the norm below which a gradient counts as zero, as of labels that the batch has not."""
    return 1e-7 * math.hypot(*(_norm(each) for name, each in reference.items() if name.startswith(GRADIENT)))


def _error(true: Tensor, value: Tensor, least: float) -> float:
    """Return the distance as a share of the true value's norm; infinite where it is no number."""
    return _distance(true, value) / max(_norm(true), least, 1e-30)


def _distance(true: Tensor, value: Tensor) -> float:
    distance = _norm(value.double() - true.double())
    return math.inf if math.isnan(distance) else distance


def _norm(value: Tensor) -> float:
    return float(value.double().norm())


@contextmanager
def exact_float32() -> Iterator[None]:
    """Let CUDA multiply float32 as such in the block, not as TF32."""
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [each.fp32_precision for each in settings]
    for each in settings:
        each.fp32_precision = "ieee"
    try:
        yield
    finally:
        for each, value in zip(settings, before, strict=True):
            each.fp32_precision = value
