"""Whether a device computes what it is told: a step as it will be run, beside the same step without any cleverness.

The same images, noise and weights go three ways: eager in float32, eager in the chosen precision, and as the training
will run (compiled, and replayed as a CUDA graph). The second tells how much the precision explains; what differs more
is wrong, whoever's fault it is: a compiler's, a driver's, or this project's.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusion_core.runtime.compilation import forget_compilation
from diffusion_core.runtime.recording import Recording
from diffusion_core.training.distributed import Ranks
from diffusion_core.training.draws import TrainingDraws
from diffusion_core.training.gradient import Gradient

# How many times the error of eager steps in the same precision may be exceeded, plus a share of the value itself.
FACTOR = 3.0
TOLERANCE = {torch.float32: 5e-3, torch.bfloat16: 0.1}
# What a sound low precision may do to the whole gradient, to the output and to the loss.
PRECISION_LIMIT = 0.3
# Pixels that the float32 step has at a time, so that memory for the training suffices for it too.
PIXELS_AT_A_TIME = 16 * 64 * 64


class Computed(NamedTuple):
    """What one step computed: the loss, the gradients by parameter, and the network's last output where it is known."""

    loss: Tensor
    gradients: Mapping[str, Tensor]
    output: Tensor | None


@dataclass(frozen=True)
class Verdict:
    """What came of comparing one way of running a step with eager float32.

    Attributes:
        way: how the step was run.
        passed: whether its error is explained by the precision.
        worst: the value whose error is largest beside what is allowed: output, loss, or a parameter's name.
        error: of that value, relative to its norm.
        allowed: the error that precision explains.
        problem: why the step could not be run at all, or "".
    """

    way: str
    passed: bool
    worst: str = ""
    error: float = 0.0
    allowed: float = 0.0
    problem: str = ""

    def __str__(self) -> str:
        if self.problem:
            return f"{self.way}: cannot run ({self.problem})"
        verdict = "passed" if self.passed else "FAILED"
        return f"{self.way}: {verdict}, {self.worst} is off by {self.error:.2g} where {self.allowed:.2g} is allowed"


def compare(way: str, reference: Computed, eager: Computed, run: Computed, tolerance: float) -> Verdict:
    """Return whether `run` is as near to the reference as its precision, which `eager` has too, lets it be."""
    ratios = {
        name: (error, FACTOR * explained + tolerance)
        for (name, error), (_, explained) in zip(
            _errors(reference, run, output=run.output is not None),
            _errors(reference, eager, output=run.output is not None),
            strict=True,
        )
    }
    # A value that is no number is worse than any.
    worst = max(ratios, key=lambda name: ratios[name][0] / ratios[name][1] if ratios[name][0] >= 0.0 else float("inf"))
    error, allowed = ratios[worst]
    return Verdict(way, error <= allowed, worst, error, allowed)


def judge_precision(way: str, reference: Computed, eager: Computed) -> Verdict:
    """Return whether a precision computes the step at all: its whole gradient, its output and its loss."""
    whole = {
        "the gradient": tuple(torch.cat([g.flatten() for g in each.gradients.values()]) for each in (reference, eager)),
        "the loss": (reference.loss, eager.loss),
    }
    if reference.output is not None and eager.output is not None:
        whole["the output"] = (reference.output, eager.output)
    errors = {name: _error(true, value, 0.0) for name, (true, value) in whole.items()}
    worst = max(errors, key=lambda name: errors[name] if errors[name] >= 0.0 else float("inf"))
    return Verdict(way, errors[worst] <= PRECISION_LIMIT, worst, errors[worst], PRECISION_LIMIT)


def _errors(reference: Computed, other: Computed, output: bool) -> list[tuple[str, float]]:
    norms = torch.stack([each.norm() for each in reference.gradients.values()])
    # Of a gradient that is exactly zero, as of labels that the batch has not, nothing is a share.
    least = 1e-7 * float(norms.norm())
    errors = [("loss", _error(reference.loss, other.loss, 0.0))]
    if output and reference.output is not None and other.output is not None:
        errors.append(("output", _error(reference.output, other.output, 0.0)))
    return errors + [
        (f"the gradient of {name}", _error(true, other.gradients[name], least))
        for name, true in reference.gradients.items()
    ]


def _error(true: Tensor, value: Tensor, least: float) -> float:
    return float((value.float() - true.float()).norm() / true.float().norm().clamp(min=max(least, 1e-30)))


def computed(gradient: Gradient, run: Callable[[], Tensor]) -> Computed:
    """Return what `run`, which sets the gradients of `gradient`'s parameters and returns the loss, computes."""
    outputs: list[Tensor] = []
    hook = gradient.diffusion.model.register_forward_hook(lambda *call: outputs.append(call[-1].detach()))
    try:
        with _without_dropout(gradient.diffusion):
            loss = run().detach().clone()
    finally:
        hook.remove()
    named = gradient.diffusion.named_parameters()
    gradients = {name: each.grad.detach().clone() for name, each in named if each.grad is not None}
    gradient.diffusion.zero_grad(set_to_none=True)
    return Computed(loss, gradients, torch.cat(outputs[-1:]).float() if outputs else None)


def check_training(
    gradient: Gradient,
    images: Tensor,
    labels: Tensor | None,
    draws: TrainingDraws,
    *,
    compiled: bool,
    replayed: bool,
) -> Iterator[Verdict]:
    """Yield a verdict for each way a step is run, simplest first; the first that fails is the last.

    Nothing of the training changes. Where several processes train, each checks by itself.

    Args:
        gradient: of the training.
        images, labels, draws: as of `Gradient.inputs`.
        compiled: whether the network is compiled.
        replayed: whether steps are replayed as a CUDA graph.
    """
    reference, eager, verdict = _check_precision(gradient, images, labels, draws)
    yield verdict
    alone = Gradient(gradient.diffusion, gradient.dtype, gradient.accumulate, gradient.horizontal_flip, Ranks())
    precision = str(gradient.dtype).removeprefix("torch.")

    def check(way: str, run: Callable[..., Tensor]) -> Verdict:
        try:
            done = computed(alone, lambda: alone.attempt(run, images, labels, draws))
        # What compilers raise, what a full disk does, and what graphs cannot hold.
        except (RuntimeError, OSError) as error:
            return Verdict(f"{precision}, {way}", False, problem=" ".join(str(error).split())[:500])
        return compare(f"{precision}, {way}", reference, eager, done, TOLERANCE[gradient.dtype])

    if compiled and verdict.passed:
        verdict = check("compiled", alone.compute)
        yield verdict
    if replayed and verdict.passed:
        yield check(
            "compiled, replayed" if compiled else "replayed",
            lambda *inputs: Recording(alone.compute, inputs)(*inputs).clone(),
        )


def _check_precision(
    gradient: Gradient, images: Tensor, labels: Tensor | None, draws: TrainingDraws
) -> tuple[Computed, Computed, Verdict]:
    """Run a step eager in float32 and in the chosen precision; return both, and whether the latter is sound."""
    plain = deepcopy(gradient.diffusion)
    forget_compilation(plain.model)

    def step(dtype: torch.dtype) -> Computed:
        eager = Gradient(plain, dtype, _parts(images), gradient.horizontal_flip, Ranks())
        return computed(eager, lambda: eager.attempt(eager.compute, images, labels, draws))

    with _exact_float32():
        reference = step(torch.float32)
    eager = step(gradient.dtype)
    name = str(gradient.dtype).removeprefix("torch.")
    return reference, eager, judge_precision(f"{name}, eager", reference, eager)


def _parts(images: Tensor) -> int:
    """Return into how many equal parts a batch is cut so that each has few enough pixels."""
    count, pixels = len(images), images.shape[-1] * images.shape[-2]
    divisors = (n for n in range(1, count + 1) if count % n == 0)
    return next(n for n in divisors if count // n * pixels <= PIXELS_AT_A_TIME or n == count)


@contextmanager
def _exact_float32() -> Iterator[None]:
    """Let CUDA multiply float32 as such, not as TF32."""
    matmul = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul


@contextmanager
def _without_dropout(module: nn.Module) -> Iterator[None]:
    """Leave dropout out: its masks depend on who computes, so two ways would differ by them alone."""
    layers = [each for each in module.modules() if isinstance(each, nn.Dropout) and each.training and each.p > 0.0]
    for each in layers:
        each.eval()
    try:
        yield
    finally:
        for each in layers:
            each.train()
