"""Eager, compiled and replayed as a CUDA graph, a step has one output, loss and gradient: the CPU's in float64."""

from copy import deepcopy
from functools import lru_cache
from itertools import pairwise

import pytest
import torch

from diffusion_core import DDIM, ImageNoise
from diffusion_core.runtime.compilation import compile_for_sampling, compile_network
from diffusion_core.runtime.recording import Recording
from diffusion_core.self_check.comparison import GRADIENT, TOLERANCE, compare, judge_precision
from diffusion_core.self_check.sampling import check_sampling
from tests.gpu.builds import CLASSES, KINDS, Geometry, build, geometry, relative, step_gradient, step_inputs

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SMALL = Geometry(16, (1, 2), 16, 32)


def values(gradient, shape, replayed=False, step=0):
    """Return loss, output and gradients of a step; a replayed one was recorded at another step."""
    outputs = []
    hook = gradient.diffusion.model.register_forward_hook(
        # The estimate of self-conditioning has no gradient.
        lambda _, __, output: outputs.append(output.detach()) if output.requires_grad else None
    )
    run = gradient.compute
    if replayed:
        other = step_inputs(gradient, shape, step + 1)
        gradient.compute(*other)
        outputs.clear()
        run = Recording(gradient.compute, other)
    loss = run(*step_inputs(gradient, shape, step))
    hook.remove()
    found = {"the loss": loss.detach(), "the output": torch.cat(outputs)}
    found |= {GRADIENT + name: each.grad for name, each in gradient.diffusion.named_parameters()}
    return {name: each.detach().double().cpu() for name, each in found.items()}


@lru_cache
def on_the_cpu(kind, shape):
    return values(step_gradient(build(kind, "cpu", shape).double()), shape)


@lru_cache
def eager(kind, device, dtype):
    shape = geometry(device)
    return values(step_gradient(build(kind, device, shape), dtype), shape)


def compiled(kind, device, dtype, replayed=False):
    shape = geometry(device)
    diffusion = build(kind, device, shape)
    compile_network(diffusion.model)
    return values(step_gradient(diffusion, dtype), shape, replayed)


def add(record, name, verdict):
    record(name, verdict.error, verdict.allowed, note=verdict.problem or verdict.worst)


@pytest.mark.parametrize("kind", KINDS)
def test_an_eager_step_is_the_cpus(kind, device, record):
    true = on_the_cpu(kind, geometry(device))
    float32, bfloat16 = (eager(kind, device, dtype) for dtype in PRECISIONS.values())
    add(record, f"{kind}: float32, eager", compare("", true, true, float32, TOLERANCE[torch.float32]))
    add(record, f"{kind}: bfloat16, eager", judge_precision("", true, bfloat16))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_compiled_step_is_the_cpus(kind, precision, device, record):
    dtype = PRECISIONS[precision]
    true, plain = on_the_cpu(kind, geometry(device)), eager(kind, device, dtype)
    run = compiled(kind, device, dtype)
    add(record, f"{kind}: {precision}, compiled", compare("", true, plain, run, TOLERANCE[dtype]))


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_replayed_step_is_the_cpus(kind, precision, device, record):
    dtype = PRECISIONS[precision]
    true, plain = on_the_cpu(kind, geometry(device)), eager(kind, device, dtype)
    run = compiled(kind, device, dtype, replayed=True)
    add(record, f"{kind}: {precision}, compiled, replayed", compare("", true, plain, run, TOLERANCE[dtype]))


@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_give_the_gradient_of_the_batch(accumulate, device, record):
    whole = values(step_gradient(build("all", device, SMALL)), SMALL)
    parts = values(step_gradient(build("all", device, SMALL), accumulate=accumulate), SMALL)
    record(f"{accumulate} micro-batches, eager: step", relative(parts, whole), 1e-4)


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_replayed_step_takes_its_own_images_labels_timesteps_and_noise(accumulate, device, record):
    gradient = step_gradient(build("all", device, SMALL), accumulate=accumulate)
    first = step_inputs(gradient, SMALL, 0)
    gradient.compute(*first)
    recording = Recording(gradient.compute, first)
    plain = step_gradient(build("all", device, SMALL), accumulate=accumulate)
    for step in range(3):
        ours = recording(*step_inputs(gradient, SMALL, step)).clone()
        theirs = plain.compute(*step_inputs(plain, SMALL, step))
        one, other = (
            {"loss": loss, **{name: each.grad for name, each in each.diffusion.named_parameters()}}
            for loss, each in ((ours, gradient), (theirs, plain))
        )
        record(f"replayed step {step}, {accumulate} parts", relative(one, other), 1e-4)


def test_other_labels_are_dropped_at_each_step(device, record):
    gradient = step_gradient(build("class-conditional", device, SMALL))
    dropped = [step_inputs(gradient, SMALL, step)[4] for step in range(4)]
    assert all(0 < int(each.sum()) < SMALL.batch for each in dropped)
    differences = [float((one != other).sum()) for one, other in pairwise(dropped)]
    record("labels dropped at one of two steps alone", min(differences), 1, least=True)


@pytest.mark.usefixtures("graphs")
def test_masks_of_dropout_are_new_in_each_replayed_step_and_follow_from_its_seed(device, record):
    gradient = step_gradient(build("plain", device, SMALL, dropout=0.3))
    inputs = step_inputs(gradient, SMALL, 0)

    def losses(run):
        found = []
        for seed in (1, 2, 1):
            torch.manual_seed(seed)
            found.append(float(run(*inputs)))
        return found

    eager = losses(gradient.compute)
    replayed = losses(Recording(gradient.compute, inputs))
    record("dropout: replayed step, and eager one of its seed", max(_shares(replayed, eager)), 1e-5)
    record("dropout: replayed steps of one seed", abs(replayed[2] / replayed[0] - 1.0), 1e-5)
    record("dropout: replayed steps of two seeds", abs(replayed[1] / replayed[0] - 1.0), 1e-4, least=True)


def _shares(ours, theirs):
    return [abs(one / other - 1.0) for one, other in zip(ours, theirs, strict=True)]


@pytest.mark.parametrize(("precision", "parts"), [("bfloat16", 1), ("bfloat16", 2), ("float32", 2)])
def test_a_pass_compiled_for_sampling_is_the_eager_one(precision, parts, device, record, fast):
    """At two sizes of batch; on a GPU at first compiled, then recorded, then replayed."""
    count = geometry(device).batch // parts
    add(record, f"sampling {count} images: {precision}", check_sampling(*fast, PRECISIONS[precision], count))


def test_images_sampled_by_a_compiled_network_are_those_of_the_eager_one(device, record, fast):
    count = geometry(device).batch // 2
    options = {"sampler": DDIM(steps=10, eta=0.5), "classes": torch.arange(count) % CLASSES}
    plain, quick = (each.sample(count, randn=ImageNoise(3, range(count)), **options) for each in fast)
    record("ddim, 10 steps, compiled: pixel", (plain - quick).abs().max(), 1e-3)


@pytest.fixture(scope="module")
def fast(device):
    """One process as it is written, and the same compiled for sampling."""
    plain = build("all", device, geometry(device)).eval().requires_grad_(False)
    quick = deepcopy(plain)
    compile_for_sampling(quick.model)
    return plain, quick
