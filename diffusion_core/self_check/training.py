"""Whether a device computes what it is asked to: a step as the training will run it, beside the same step, plain.

The same images, noise and weights go three ways: eager in float32, eager in the chosen precision, and as the training
will run (compiled, and replayed as a CUDA graph). The second shows how much the precision explains. What differs more
is wrong, be it by a compiler, by a driver or by this project.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from diffusion_core.process.gaussian_diffusion import GaussianDiffusion
from diffusion_core.runtime.distributed import Ranks
from diffusion_core.runtime.recording import Recording
from diffusion_core.self_check.comparison import (
    GRADIENT,
    TOLERANCE,
    Values,
    Verdict,
    cannot_run,
    compare,
    exact_float32,
    judge_precision,
)
from diffusion_core.training.randomness import StepRandomness
from diffusion_core.training.step import Gradient, OutOfMemory

# Pixels that the float32 step has at a time, so that memory for the training suffices for it too.
PIXELS_AT_A_TIME = 8 * 64 * 64
# Pixels that show what a precision does, where nothing is compiled for the shape of a batch.
PIXELS_OF_A_FEW = 8 * 32 * 32
# One or two alone could all have a timestep at which the loss is a difference of nearly equal numbers.
FEWEST = 4


def check_training(
    gradient: Gradient,
    images: Tensor,
    labels: Tensor | None,
    randomness: StepRandomness,
    *,
    compiled: bool,
    replayed: bool,
) -> Iterator[Verdict]:
    """Yield a verdict for each way a step is run, simplest first; the first that fails is the last.

    Nothing of the training changes, but where memory is too small for the check: there the training's batches are cut
    as the check's had to be, so that what was checked is what runs. Several processes check each by itself. Where
    nothing is compiled or replayed, a few of the images suffice.

    Args:
        gradient: of the training.
        images, labels, randomness: as of `Gradient.inputs`.
        compiled: whether the network is compiled.
        replayed: whether steps are replayed as a CUDA graph.
    """
    precision = str(gradient.dtype).removeprefix("torch.")
    if not compiled and not replayed:
        few = min(len(images), max(FEWEST, PIXELS_OF_A_FEW // (images.shape[-1] * images.shape[-2])))
        images, labels, randomness = images[:few], None if labels is None else labels[:few], randomness.part(range(few))
    try:
        # A copy leaves behind what was compiled.
        plain = deepcopy(gradient.diffusion) if compiled else gradient.diffusion
        reference, eager = _plain_steps(gradient, plain, images, labels, randomness)
        del plain
    except (OutOfMemory, torch.OutOfMemoryError):
        yield Verdict(f"{precision}, eager", True, problem="but not compared: the device's memory is too small")
        return
    verdict = judge_precision(f"{precision}, eager", reference, eager)
    yield verdict
    alone = Gradient(gradient.diffusion, gradient.dtype, gradient.accumulate, gradient.horizontal_flip, Ranks())

    def check(way: str, run: Callable[..., Tensor]) -> Verdict:
        way = f"{precision}, {way}"
        try:
            values = step_values(alone, run, images, labels, randomness)
            return compare(way, reference, eager, values, TOLERANCE[gradient.dtype])
        # What compilers raise, what a full disk does, what graphs cannot hold, and memory that is too small.
        except (RuntimeError, OSError) as error:
            return cannot_run(way, error)

    def replay(*inputs: Tensor | None) -> Tensor:
        """Record another step, and replay it with this one's inputs: a value that is frozen or not copied shows."""
        alone.compute(*inputs)  # type: ignore[arg-type]
        recording = Recording(alone.compute, alone.inputs(*_others(images, labels, randomness, alone)))
        for each in alone.diffusion.parameters():
            if each.grad is not None:
                each.grad.fill_(torch.nan)
        return recording(*inputs).clone()

    if compiled and verdict.passed:
        verdict = check("compiled", alone.compute)
        gradient.accumulate = alone.accumulate
        yield verdict
    if replayed and verdict.passed:
        verdict = check("compiled, replayed" if compiled else "replayed", replay)
        gradient.accumulate = alone.accumulate
        yield verdict


def step_values(
    gradient: Gradient,
    run: Callable[..., Tensor],
    images: Tensor,
    labels: Tensor | None,
    randomness: StepRandomness,
) -> Values:
    """Return loss, output and gradients of `run`, which does what `Gradient.compute` does, on the host.

    Raises:
        OutOfMemory: as `Gradient.attempt`.
    """
    network, outputs = gradient.diffusion.model, list[Tensor]()

    def keep(_: nn.Module, __: object, output: Tensor) -> None:
        if output.requires_grad:  # the estimate of self-conditioning does not
            outputs.append(output.detach())

    def attempt(*inputs: Tensor | None) -> Tensor:
        outputs.clear()
        return run(*inputs)

    recomputes = getattr(network, "recompute", None)
    hook = network.register_forward_hook(keep)
    try:
        with _without_dropout(gradient.diffusion):
            loss = gradient.attempt(attempt, images, labels, randomness)
        # A replay's own outputs come last; before them are those of its warm-up.
        batches = outputs[-gradient.accumulate :]
        values = {"the loss": loss.detach().cpu(), "the output": torch.cat([each.cpu() for each in batches]).float()}
        for name, each in gradient.diffusion.named_parameters():
            # One that is missing counts as zero, so that it shows where another way has one.
            found = torch.zeros_like(each) if each.grad is None else each.grad
            values[GRADIENT + name] = found.detach().cpu().clone()
        return values
    finally:
        hook.remove()
        gradient.diffusion.zero_grad(set_to_none=True)
        if recomputes is not None:
            network.recompute = recomputes


def _plain_steps(
    gradient: Gradient, plain: GaussianDiffusion, images: Tensor, labels: Tensor | None, randomness: StepRandomness
) -> tuple[Values, Values]:
    """Return what an eager step in float32 computes, and one in the chosen precision."""
    # Noise is assigned within a micro-batch, so there the cut is the training's own, if the images allow it.
    parts = gradient.accumulate if plain.immiscible and len(images) % gradient.accumulate == 0 else _parts(images)

    def step(dtype: torch.dtype) -> Values:
        eager = Gradient(plain, dtype, parts, gradient.horizontal_flip, Ranks())
        return step_values(eager, eager.compute, images, labels, randomness)

    with exact_float32():
        reference = step(torch.float32)
    return reference, step(gradient.dtype)


def _others(
    images: Tensor, labels: Tensor | None, randomness: StepRandomness, gradient: Gradient
) -> tuple[Tensor, Tensor | None, StepRandomness]:
    """Return other images, labels and random numbers of the same shapes.

    A single image stays with or without its estimate, and a single class is the class.
    """
    process = gradient.diffusion
    size, mask = len(images) // gradient.accumulate, randomness.self_cond_mask
    others = replace(
        randomness,
        times=process.num_timesteps - 1 - randomness.times,
        noise=-randomness.noise,
        # As many within each micro-batch: of an even one the other half, of an odd one the next image each.
        self_cond_mask=mask.unflatten(0, (-1, size)).roll(1, 1).flatten() if size % 2 else ~mask,
        unlabelled=~randomness.unlabelled,
        flipped=~randomness.flipped,
    )
    if labels is not None and process.num_classes is not None:
        labels = (labels + 1) % process.num_classes
    return 255 - images, labels, others


def _parts(images: Tensor) -> int:
    """Return into how many equal parts a batch is cut so that each has few enough pixels."""
    count, pixels = len(images), images.shape[-1] * images.shape[-2]
    divisors = (n for n in range(1, count + 1) if count % n == 0)
    return next(n for n in divisors if count // n * pixels <= PIXELS_AT_A_TIME or n == count)


@contextmanager
def _without_dropout(module: nn.Module) -> Iterator[None]:
    """Leave PyTorch's dropout layers out: two ways have different masks, and would differ by them alone."""
    layers = [each for each in module.modules() if isinstance(each, _DropoutNd) and each.training and each.p > 0.0]
    for each in layers:
        each.eval()
    try:
        yield
    finally:
        for each in layers:
            each.train()
