"""The self-check of training: compares a step as training will run it with the same step in eager float32.

The step runs in three ways with the same images, noise and weights: eager in float32, eager in the chosen precision,
and as training will run. That is compiled, and replayed as a CUDA graph. The second way measures the error of the
precision. A greater error is a fault of a compiler, a driver or this project.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from diffusion_core.errors import is_out_of_memory
from diffusion_core.process.gaussian_diffusion import GaussianDiffusion
from diffusion_core.runtime.distributed import Ranks
from diffusion_core.runtime.precision import exact_float32
from diffusion_core.runtime.recording import Recording
from diffusion_core.self_check.comparison import (
    GRADIENT,
    TOLERANCE,
    Values,
    Verdict,
    cannot_run,
    compare,
    judge_precision,
)
from diffusion_core.training.randomness import StepRandomness
from diffusion_core.training.step import Gradient, OutOfMemory

# Pixels per micro-batch of the float32 step, so that it needs no more memory than training.
PIXELS_AT_A_TIME = 8 * 64 * 64
# Pixels that suffice to check a precision if nothing is compiled for the shape of a batch.
PIXELS_OF_A_FEW = 8 * 32 * 32
# Minimum number of images: for all of one or two, the loss could be a difference of nearly equal numbers.
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
    """Yield a verdict for each way to run a step, in the order eager, compiled, replayed; stop after a failure.

    If memory is too small for the check, training gets the smaller micro-batches of the check, so that it runs what was
    checked. Otherwise training does not change. Each process checks on its own. If nothing is compiled or replayed, a
    few of the images suffice.

    Args:
        gradient: the gradient of the training.
        images: as for `Gradient.inputs`.
        labels: as for `Gradient.inputs`.
        randomness: as for `Gradient.inputs`.
        compiled: whether the network is compiled.
        replayed: whether steps are replayed as a CUDA graph.
    """
    precision = str(gradient.dtype).removeprefix("torch.")
    if not compiled and not replayed:
        few = min(len(images), max(FEWEST, PIXELS_OF_A_FEW // (images.shape[-1] * images.shape[-2])))
        images, labels, randomness = images[:few], None if labels is None else labels[:few], randomness.part(range(few))
    try:
        # The copy is not compiled.
        plain = deepcopy(gradient.diffusion) if compiled else gradient.diffusion
        reference, eager = _plain_steps(gradient, plain, images, labels, randomness)
        del plain
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, OutOfMemory) and not is_out_of_memory(error):
            raise
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
        # Errors of compilers, full disks, CUDA graphs and too little memory.
        except (RuntimeError, OSError) as error:
            return cannot_run(way, error)

    def replay(*inputs: Tensor | None) -> Tensor:
        """Record a step with other inputs and replay it with these, which detects inputs that are not copied."""
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
    """Return loss, output and gradients of a step, on the host.

    Args:
        gradient: the gradient to compute.
        run: called like `Gradient.compute`.
        images: as for `Gradient.inputs`.
        labels: as for `Gradient.inputs`.
        randomness: as for `Gradient.inputs`.

    Raises:
        OutOfMemory: as for `Gradient.attempt`.
    """
    network, outputs = gradient.diffusion.model, list[Tensor]()

    def keep(_: nn.Module, __: object, output: Tensor) -> None:
        if output.requires_grad:  # not the self-conditioning estimate
            outputs.append(output.detach())

    def attempt(*inputs: Tensor | None) -> Tensor:
        outputs.clear()
        return run(*inputs)

    recomputes = getattr(network, "recompute", None)
    hook = network.register_forward_hook(keep)
    try:
        with _without_dropout(gradient.diffusion):
            loss = gradient.attempt(attempt, images, labels, randomness)
        # A replay's outputs come last, after those of its warm-up.
        batches = outputs[-gradient.accumulate :]
        values = {"the loss": loss.detach().cpu(), "the output": torch.cat([each.cpu() for each in batches]).float()}
        for name, each in gradient.diffusion.named_parameters():
            # A missing gradient counts as zero, so that it differs from a gradient of another way.
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
    """Return the values of an eager step in float32, and of one in the chosen precision."""
    # Immiscible noise is assigned within a micro-batch, so it needs the micro-batches of training, if they divide the
    # images.
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

    For a single image, `self_cond_mask` stays the same; for a single class, so do the labels.
    """
    process = gradient.diffusion
    size, mask = len(images) // gradient.accumulate, randomness.self_cond_mask
    others = replace(
        randomness,
        times=process.num_timesteps - 1 - randomness.times,
        noise=-randomness.noise,
        # The same number in each micro-batch: the other half if its size is even, else shifted by one image.
        self_cond_mask=mask.unflatten(0, (-1, size)).roll(1, 1).flatten() if size % 2 else ~mask,
        unlabelled=~randomness.unlabelled,
        flipped=~randomness.flipped,
    )
    if labels is not None and process.num_classes is not None:
        labels = (labels + 1) % process.num_classes
    return 255 - images, labels, others


def _parts(images: Tensor) -> int:
    """Return the smallest number of equal micro-batches with at most `PIXELS_AT_A_TIME` pixels each."""
    count, pixels = len(images), images.shape[-1] * images.shape[-2]
    divisors = (n for n in range(1, count + 1) if count % n == 0)
    return next(n for n in divisors if count // n * pixels <= PIXELS_AT_A_TIME or n == count)


@contextmanager
def _without_dropout(module: nn.Module) -> Iterator[None]:
    """Disable PyTorch's dropout layers in the block, because their masks differ between two ways."""
    layers = [each for each in module.modules() if isinstance(each, _DropoutNd) and each.training and each.p > 0.0]
    for each in layers:
        each.eval()
    try:
        yield
    finally:
        for each in layers:
            each.train()
