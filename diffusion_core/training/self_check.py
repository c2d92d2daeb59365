"""Whether a device computes what it is told: a step as it will be run, beside the same step without any cleverness.

The same images, noise and weights go three ways: eager in float32, eager in the chosen precision, and as the training
will run (compiled, and replayed as a CUDA graph). The second tells how much the precision explains; what differs more
is wrong, whoever's fault it is: a compiler's, a driver's, or this project's.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from diffusion_core.networks.unet import Unet
from diffusion_core.process.gaussian_diffusion import GaussianDiffusion
from diffusion_core.process.learned_variance import LearnedGaussianDiffusion
from diffusion_core.process.transfer import moved
from diffusion_core.runtime.compilation import compile_for_sampling, compile_network, forget_compilation
from diffusion_core.runtime.recording import Recording
from diffusion_core.training.distributed import Ranks
from diffusion_core.training.draws import TrainingDraws
from diffusion_core.training.gradient import Gradient

# Values of a step by name: the loss, the network's output, and each parameter's gradient.
Values = dict[str, Tensor]
GRADIENT = "the gradient of "

# How many times the error of eager steps in the same precision may be exceeded, plus a share of the value itself.
FACTOR = 3.0
TOLERANCE = {torch.float32: 5e-3, torch.bfloat16: 0.1}
# What a sound low precision may do to the whole gradient, to the output and to the loss.
PRECISION_LIMIT = 0.3
# Pixels that the float32 step has at a time, so that memory for the training suffices for it too.
PIXELS_AT_A_TIME = 16 * 64 * 64


@dataclass(frozen=True)
class Verdict:
    """What came of comparing one way of running a step with eager float32.

    Attributes:
        way: how the step was run.
        passed: whether its error is explained by the precision.
        worst: the value whose error is largest beside what is allowed: output, loss, or a parameter's gradient.
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


def compare(way: str, reference: Values, eager: Values, run: Values, tolerance: float) -> Verdict:
    """Return whether each value of `run` is as near to the reference as precision, which `eager` shows, lets it be."""
    least = _least(reference)
    errors = {name: _error(reference[name], run[name], least) for name in run}
    allowed = {name: FACTOR * _error(reference[name], eager[name], least) + tolerance for name in run}
    worst = max(errors, key=lambda name: errors[name] / allowed[name])
    return Verdict(way, errors[worst] <= allowed[worst], worst, errors[worst], allowed[worst])


def judge_precision(way: str, reference: Values, eager: Values) -> Verdict:
    """Return whether a precision computes the step at all: its loss, its output and its whole gradient."""

    def whole(values: Values) -> Values:
        gradients = [each.flatten() for name, each in values.items() if name.startswith(GRADIENT)]
        others = {name: each for name, each in values.items() if not name.startswith(GRADIENT)}
        return others | ({"the gradient": torch.cat(gradients)} if gradients else {})

    true, value = whole(reference), whole(eager)
    errors = {name: _error(true[name], value[name], 0.0) for name in true}
    worst = max(errors, key=lambda name: errors[name])
    return Verdict(way, errors[worst] <= PRECISION_LIMIT, worst, errors[worst], PRECISION_LIMIT)


def _least(reference: Values) -> float:
    """Return the norm below which a gradient counts as zero, as of labels that the batch has not."""
    norms = [float(each.norm()) for name, each in reference.items() if name.startswith(GRADIENT)]
    return 1e-7 * math.hypot(*norms)


def _error(true: Tensor, value: Tensor, least: float) -> float:
    """Return the distance as a share of the true value's norm; infinite where it is no number."""
    error = float((value.float() - true.float()).norm() / true.float().norm().clamp(min=max(least, 1e-30)))
    return math.inf if math.isnan(error) else error


def _values(gradient: Gradient, run: Callable[[], Tensor]) -> Values:
    """Return what `run`, which sets the gradients of `gradient`'s parameters and returns the loss, computes."""
    outputs: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> None:
        if output.requires_grad:  # the first guess of self-conditioning does not
            outputs.append(output.detach())

    hook = gradient.diffusion.model.register_forward_hook(keep)
    try:
        with _without_dropout(gradient.diffusion):
            values = {"the loss": run().detach().clone()}
    finally:
        hook.remove()
    values["the output"] = torch.cat(outputs).float()
    for name, each in gradient.diffusion.named_parameters():
        if each.grad is not None:
            values[GRADIENT + name] = each.grad.detach().clone()
    gradient.diffusion.zero_grad(set_to_none=True)
    return values


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
            values = _values(alone, lambda: alone.attempt(run, images, labels, draws))
        # What compilers raise, what a full disk does, and what graphs cannot hold.
        except (RuntimeError, OSError) as error:
            return Verdict(f"{precision}, {way}", False, problem=" ".join(str(error).split())[:500])
        return compare(f"{precision}, {way}", reference, eager, values, TOLERANCE[gradient.dtype])

    if compiled and verdict.passed:
        verdict = check("compiled", alone.compute)
        yield verdict
    if replayed and verdict.passed:
        yield check(
            "compiled, replayed" if compiled else "replayed",
            lambda *inputs: Recording(alone.compute, inputs)(*inputs).clone(),
        )


def check_device(device: torch.device, dtype: torch.dtype, *, compiled: bool, replayed: bool) -> Iterator[Verdict]:
    """Yield verdicts on a device itself, by a small network with everything in it: first on eager float32.

    Its reference is a CPU in float64; the others' is eager float32 on the device, as in `check_training`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Unet(32, dim_mults=(1, 2), channels=3, self_condition=True, num_classes=4, learned_variance=True)
    exact = LearnedGaussianDiffusion(network, image_size=16, vb_loss_weight=0.1)
    source = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8, generator=source)
    labels = torch.arange(16) % 4
    draws = TrainingDraws.of(exact, 16, seed=0, step=0)
    there = replace(draws, noise=draws.noise.to(device))
    diffusion = deepcopy(exact).to(device)

    # Without autocast, the process's own type is the one that is computed in.
    reference = Gradient(exact.double(), torch.float32, 1, False, Ranks())
    eager = Gradient(diffusion, torch.float32, 1, False, Ranks())
    exactly = _values(reference, lambda: reference.attempt(reference.compute, images, labels, draws))
    with _exact_float32():
        values = _values(eager, lambda: eager.attempt(eager.compute, images.to(device), labels, there))
    true = {name: each.to(device) for name, each in exactly.items()}
    yield compare("float32, eager, beside a CPU's float64", true, true, values, TOLERANCE[torch.float32])

    if dtype == torch.float32 and not (compiled or replayed):
        return
    if compiled:
        compile_network(diffusion.model)
    gradient = Gradient(diffusion, dtype, 1, False, Ranks())
    yield from check_training(gradient, images.to(device), labels, there, compiled=compiled, replayed=replayed)
    if compiled:
        plain = deepcopy(diffusion).eval().requires_grad_(False)
        fast = deepcopy(plain)
        compile_for_sampling(fast.model)
        yield check_sampling(plain, fast, dtype, 16)


def check_sampling(plain: GaussianDiffusion, fast: GaussianDiffusion, dtype: torch.dtype, count: int) -> Verdict:
    """Return whether the network of `fast` gives what that of `plain`, the same weights run eagerly, does.

    Args:
        plain: in eval mode.
        fast: compiled for sampling.
        dtype: of the networks' products.
        count: images at a time, as sampling will have them.
    """
    device, source = plain.device, torch.Generator().manual_seed(0)
    shape = (2, count, plain.channels, *plain.image_size)
    x, guess = (moved(each, device) for each in torch.randn(shape, generator=source))
    times = torch.randint(plain.num_timesteps, (count,), generator=source)
    inputs = [x, moved(times, device), guess if plain.self_condition else None]
    if plain.num_classes is not None:
        inputs.append(moved(torch.arange(count) % (plain.num_classes + 1), device))

    @torch.inference_mode()
    def values(network: nn.Module, dtype: torch.dtype) -> Values:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return {"the output": network(*inputs).float()}

    with _exact_float32():
        reference = values(plain.model, torch.float32)
    eager = values(plain.model, dtype)
    way = f"{str(dtype).removeprefix('torch.')}, compiled for sampling"
    try:
        # At first kernels are compiled, then recorded as graphs, then replayed.
        runs = [values(fast.model, dtype) for _ in range(3)]
    except (RuntimeError, OSError) as error:
        return Verdict(way, False, problem=" ".join(str(error).split())[:500])
    verdicts = [compare(way, reference, eager, run, TOLERANCE[dtype]) for run in runs]
    return max(verdicts, key=lambda verdict: verdict.error / verdict.allowed)


def _check_precision(
    gradient: Gradient, images: Tensor, labels: Tensor | None, draws: TrainingDraws
) -> tuple[Values, Values, Verdict]:
    """Run a step eager in float32 and in the chosen precision; return both, and whether the latter is sound."""
    plain = deepcopy(gradient.diffusion)
    forget_compilation(plain.model)

    def step(dtype: torch.dtype) -> Values:
        eager = Gradient(plain, dtype, _parts(images), gradient.horizontal_flip, Ranks())
        return _values(eager, lambda: eager.attempt(eager.compute, images, labels, draws))

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
