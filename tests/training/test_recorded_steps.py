"""A step as a CUDA graph, without a CUDA device: what the function does is recorded once, operation by operation.

As in a graph, whatever the host decides while it records is decided for good: a value that is no tensor is frozen, and
so is the memory that is read and written. Replayed steps equal those that are taken one by one only if a step is a
function of its inputs.
"""

import logging
from functools import cache

import pytest
import torch
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from diffusion_core import GaussianDiffusion, LearnedGaussianDiffusion, TensorData, Trainer, Unet
from diffusion_core.process.noise_schedule import NoiseSchedule
from diffusion_core.runtime import recording
from diffusion_core.self_check import training as self_check
from diffusion_core.self_check.comparison import compare

PROCESSES = {
    "plain": ({}, GaussianDiffusion),
    "self-conditioned": ({"self_condition": True}, GaussianDiffusion),
    "class-conditional": ({"num_classes": 3, "cond_drop_prob": 0.5}, GaussianDiffusion),
    "learned variance": ({"learned_variance": True}, LearnedGaussianDiffusion),
    "all": ({"self_condition": True, "num_classes": 3, "learned_variance": True}, LearnedGaussianDiffusion),
}


class Recorded:
    """Stands for `Recording` where there is no CUDA device."""

    made = 0

    def __init__(self, function, inputs):
        self.inputs = [None if each is None else each.clone() for each in inputs]
        given = [each for each in self.inputs if each is not None]

        def flat(*tensors):
            left = iter(tensors)
            result = function(*(None if each is None else next(left) for each in self.inputs))
            return result, [each.grad for each in parameters]

        # What recording computes must not count, as in a CUDA graph: only operations are noted there.
        before = [each.clone() for each in state]
        # Of one mode for all operations, because each that PyTorch would make here looks up the whole stack.
        with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
            self.graph = make_fx(flat, _allow_non_fake_inputs=True)(*given)
        with torch.no_grad():
            for each, value in zip(state, before, strict=True):
                each.copy_(value)
        self.given = given
        self.gradients = [each.grad for each in parameters]
        type(self).made += 1

    def __call__(self, *inputs):
        for own, given in zip(self.inputs, inputs, strict=True):
            if own is not None:
                own.copy_(given)
        with torch.no_grad():
            result, gradients = self.graph(*self.given)
            # A graph writes them where they were when it was recorded.
            for own, gradient in zip(self.gradients, gradients, strict=True):
                own.copy_(gradient)
        return result


state, parameters = [], []


@pytest.fixture
def _recorded(monkeypatch):
    monkeypatch.setattr(recording, "Recording", Recorded)
    monkeypatch.setattr(self_check, "Recording", Recorded)
    Recorded.made = 0


def build(name="all", **options):
    torch.manual_seed(1)
    network, process = PROCESSES[name]
    diffusion = process(Unet(4, dim_mults=(1,), channels=1, **network), image_size=2)
    images = torch.randint(0, 256, (30, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    options = {"images": 64, "batch_size": 8, "precision": "float32", "horizontal_flip": True, **options}
    return Trainer(diffusion, TensorData(images, torch.arange(30) % 3), **options)


def replayed(trainer):
    """Let the trainer replay its steps, as it would on a CUDA device."""
    trainer.ways.replayed = True
    return trainer


def know_state(trainer):
    """Let `Recorded` know what recording must not change."""
    optimizer = [each for values in trainer.update.optimizer.state.values() for each in values.values()]
    parameters[:] = trainer.diffusion.parameters()
    counts = [trainer.update.bad_steps, trainer.update.most_bad_steps, trainer.update.skipped_steps]
    state[:] = [*parameters, *trainer.ema.module.parameters(), *optimizer, *counts]


def finished(trainer):
    figures = []
    for report in trainer.steps():
        know_state(trainer)
        figures.append((float(report.loss), float(report.grad_norm), report.learning_rate, float(report.skipped)))
    tensors = {f"{part}/{name}": each for part, named in trainer.tensors().items() for name, each in named.items()}
    return figures, {name: each.clone() for name, each in tensors.items()}


@cache
def stepped(name="all", **options):
    """What steps that are taken one by one give."""
    return finished(build(name, **options))


def assert_close(one, other):
    assert torch.tensor(one[0]).allclose(torch.tensor(other[0]), rtol=1e-4, equal_nan=True), (one[0], other[0])
    for name, value in other[1].items():
        assert torch.allclose(one[1][name].double(), value.double(), rtol=1e-4, atol=1e-6), name


@pytest.mark.usefixtures("_recorded")
@pytest.mark.parametrize(("name", "accumulate"), [*((name, 1) for name in PROCESSES), ("all", 2)])
def test_replayed_steps_are_the_steps_taken_one_by_one(name, accumulate):
    options = {"accumulate": accumulate, "warmup_images": 48, "learning_rate": 1e-2}
    assert_close(finished(replayed(build(name, **options))), stepped(name, **options))
    assert Recorded.made == 1


@pytest.mark.usefixtures("_recorded")
def test_a_replayed_step_whose_gradient_is_not_finite_changes_nothing():
    def poisoned(trainer):
        # An image that is no number, in the batches that hold it.
        normalise = trainer.diffusion.normalize
        trainer.diffusion.normalize = lambda images: normalise(images) / (images.sum((1, 2, 3), keepdim=True) > 0.0)
        trainer.data.images[5] = 0
        return trainer

    skips = {"max_skipped_share": 1.0}
    ours, theirs = finished(replayed(poisoned(build(**skips)))), finished(poisoned(build(**skips)))
    assert 0.0 < sum(skipped for *_, skipped in theirs[0]) < len(theirs[0])
    assert_close(ours, theirs)


@pytest.mark.usefixtures("_recorded")
@pytest.mark.parametrize("frozen", ["learning rate", "noise", "timesteps", "share of the average"])
def test_a_value_that_the_host_decides_is_noticed(frozen, monkeypatch):
    """The control: what is no input of the step is as it was when the step was recorded."""
    trainer = build(warmup_images=96, learning_rate=1e-2)
    step = trainer._computed_step

    def computed(rate, share, images, classes, times, noise, *others):
        if frozen == "learning rate":
            rate = torch.tensor(trainer._rate())
        if frozen == "noise":
            noise = trainer._randomness().noise
        if frozen == "timesteps":
            times = trainer._randomness().times
        if frozen == "share of the average":
            share = torch.tensor(1.0 - trainer.ema.decay(trainer.images + 8, 8))
        return step(rate, share, images, classes, times, noise, *others)

    monkeypatch.setattr(trainer, "_computed_step", computed)
    with pytest.raises(AssertionError):
        assert_close(finished(replayed(trainer)), stepped(warmup_images=96, learning_rate=1e-2))


# The inputs of `Gradient.compute`; with them, the step is a function of nothing else.
INPUTS = ("images", "classes", "times", "noise", "unlabelled", "flipped", "self_cond_mask")


# How a batch is cut changes who gets an estimate, and nothing else that the check may overlook.
@pytest.mark.parametrize(
    ("options", "frozen"),
    [
        *(({"batch_size": 8}, name) for name in ("nothing", *INPUTS)),
        *(
            (options, name)
            for options in ({"batch_size": 2}, {"batch_size": 6, "accumulate": 2})
            for name in ("nothing", "images", "self_cond_mask")
        ),
    ],
    ids=str,
)
def test_the_self_check_notices_an_input_that_is_frozen(options, frozen, monkeypatch):
    class Frozen(Recorded):
        def __call__(self, *inputs):
            # Of those who get an estimate there is an input for each micro-batch.
            names = (*INPUTS, *("self_cond_mask" for _ in inputs[len(INPUTS) :]))
            kept = [own if name == frozen else each for name, own, each in zip(names, self.inputs, inputs, strict=True)]
            return super().__call__(*kept)

    monkeypatch.setattr(self_check, "Recording", Frozen)

    def compare_without_output(way, reference, eager, run, tolerance):
        # Which a graph writes where it was; here, it stays what it was when it was recorded.
        return compare(way, reference, eager, {n: each for n, each in run.items() if n != "the output"}, tolerance)

    monkeypatch.setattr(self_check, "compare", compare_without_output)
    trainer = replayed(build(**options))
    trainer.ways.unchecked = True
    know_state(trainer)
    next(trainer.steps())
    assert [verdict.passed for verdict in trainer.verdicts] == [True, frozen == "nothing"]
    assert trainer.ways.replayed == (frozen == "nothing")


def test_a_first_run_that_fails_does_not_count_as_one(monkeypatch):
    def refuses(function, inputs):
        raise AssertionError("recorded before it ran")

    monkeypatch.setattr(recording, "Recording", refuses)
    runs = []

    def function(x):
        runs.append(x)
        if len(runs) == 1:
            raise torch.OutOfMemoryError("none left")
        return x

    replay = recording.Replayed(function, "it")
    with pytest.raises(torch.OutOfMemoryError):
        replay(torch.zeros(1))
    replay(torch.zeros(1))
    assert len(runs) == 2


def test_what_cannot_be_recorded_runs_as_it_is_and_says_so_once(monkeypatch, caplog):
    def refuses(function, inputs):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(recording, "Recording", refuses)
    assert_close(finished(replayed(build())), stepped())
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "a step is not replayed as a CUDA graph (operation not permitted when stream is capturing):"
        " slower where images are small"
    ]


def test_ever_new_shapes_are_neither_recorded_nor_remembered(monkeypatch, caplog):
    made = []
    monkeypatch.setattr(recording, "Recording", lambda function, inputs: made.append(inputs) or function)
    replay = recording.Replayed(lambda x: x + 1.0, "it")
    for size in range(1, 40):
        assert len(replay(torch.zeros(size))) == size
    assert made == []
    assert len(replay._warm) == recording.MOST
    assert "it of some shapes is not replayed as a CUDA graph (at most 4 shapes are recorded)" in caplog.text
    replay(torch.zeros(1))
    assert len(made) == 1


def test_recomputed_activations_are_not_recorded(caplog, monkeypatch):
    trainer = build()
    monkeypatch.setattr(NoiseSchedule, "device", torch.device("cuda"))
    assert trainer.ways.can_be_replayed()
    trainer.diffusion.model.recompute = True
    assert not trainer.ways.can_be_replayed()
    assert "activations are computed again" in caplog.text


@pytest.mark.usefixtures("_recorded")
def test_a_recording_that_is_given_up_is_made_anew():
    trainer = replayed(build(images=48))
    for report in trainer.steps():
        know_state(trainer)
        if report.step == 4:
            before = Recorded.made
            trainer.forget_recording()
    assert (before, Recorded.made) == (1, 2)


@pytest.mark.usefixtures("_recorded")
def test_a_recording_is_made_anew_after_other_tensors_were_restored():
    def interrupted(trainer):
        for report in trainer.steps():
            know_state(trainer)
            if report.step == 4:
                now = trainer.tensors()
                saved = {part: {name: each.clone() for name, each in named.items()} for part, named in now.items()}
            if report.step == 7:
                break
        trainer.restore(4, saved)
        return finished(trainer)

    assert_close(interrupted(replayed(build())), interrupted(build()))


@pytest.mark.usefixtures("_recorded")
def test_micro_batches_of_an_odd_size_have_a_recording_for_each_number_of_guesses():
    options = {"batch_size": 6, "accumulate": 2, "images": 60}
    assert_close(finished(replayed(build(**options))), stepped(**options))
    assert 1 < Recorded.made <= recording.MOST
