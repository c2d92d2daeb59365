from itertools import islice

import pytest
import torch

from diffusion_core import DDIM, EMA, GaussianDiffusion, TensorData, Trainer, Unet
from diffusion_core.training.divergence import MAX_BAD_STEPS, TrainingDiverged

BAD_STEPS = ("trainer/bad_steps", "trainer/most_bad_steps", "trainer/skipped_steps")


def build(seed=0, dropout=0.2, objective="pred_v", **options):
    torch.manual_seed(1)
    network = Unet(8, dim_mults=(1, 2), channels=1, self_condition=True, num_classes=3, dropout=dropout)
    diffusion = GaussianDiffusion(network, image_size=4, objective=objective)
    generator = torch.Generator().manual_seed(2)
    data = TensorData(
        torch.randint(0, 256, (30, 1, 4, 4), dtype=torch.uint8, generator=generator), torch.arange(30) % 3
    )
    options = {"images": 96, "batch_size": 8, "horizontal_flip": True, "precision": "float32", **options}
    return Trainer(diffusion, data, seed=seed, **options)


def state(trainer):
    return {f"{part}/{name}": each for part, named in trainer.tensors().items() for name, each in named.items()}


def finished(trainer):
    losses = [float(report.loss) for report in trainer.steps()]
    return losses, {name: each.clone() for name, each in state(trainer).items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.fixture(scope="module")
def unbroken():
    return finished(build())


@pytest.mark.parametrize("stop_after", range(1, 12))
def test_a_run_that_is_stopped_and_restored_equals_the_unbroken_one(stop_after, unbroken):
    first = build()
    losses = [float(report.loss) for report in islice(first.steps(), stop_after)]
    # Contiguous, as they come from a checkpoint's files, however they lie in memory.
    saved = {
        part: {name: each.clone(memory_format=torch.contiguous_format) for name, each in named.items()}
        for part, named in first.tensors().items()
    }
    second = build()
    torch.manual_seed(12345)
    second.restore(first.step, saved)
    rest, tensors = finished(second)
    assert losses + rest == unbroken[0]
    assert_same(tensors, unbroken[1])


@pytest.mark.parametrize("lost", ["ema", "optimizer", "step", "seed"])
def test_a_run_restored_without_a_part_of_its_state_does_not_equal_it(lost, unbroken):
    first = build()
    list(islice(first.steps(), 5))
    second = build(seed=1 if lost == "seed" else 0)
    tensors = {**first.tensors(), **({lost: second.tensors()[lost]} if lost in ("ema", "optimizer") else {})}
    step = 4 if lost == "step" else 5
    tensors["trainer"] = tensors["trainer"] | {"images": torch.tensor(8 * step)}
    second.restore(step, tensors)
    _, ended = finished(second)
    assert any(not torch.equal(ended[name], unbroken[1][name]) for name in ended)


def test_a_checkpoint_of_steps_with_another_batch_size_is_refused():
    first = build()
    list(islice(first.steps(), 4))
    other = build(batch_size=2 * first.batch_size)
    with pytest.raises(ValueError, match=rf"has {4 * first.batch_size} images in 4 steps, and batch_size is"):
        other.restore(4, first.tensors())
    assert other.step == 0


def test_sampling_is_without_dropout_in_the_middle_of_a_training_which_goes_on_with_it():
    trainer = build()
    list(islice(trainer.steps(), 1))
    diffusion, noise = trainer.diffusion, torch.randn(2, 1, 4, 4)
    modes = [module.training for module in diffusion.modules()]

    def images():
        return diffusion.sample(2, sampler=DDIM(steps=2), noise=noise)

    assert torch.equal(images(), images())
    assert [module.training for module in diffusion.modules()] == modes
    # The control: the network itself has dropout.
    t = torch.zeros(2, dtype=torch.long)
    assert any(modes)
    assert not torch.equal(diffusion.model(noise, t), diffusion.model(noise, t))


def gradients(trainer):
    """The loss and the gradients of the trainer's first step."""
    batch = trainer.data.batch(trainer.batch(1))
    torch.manual_seed(0)  # of dropout
    loss = trainer.gradient.attempt(trainer.gradient.compute, *batch, trainer._randomness())
    return loss, [each.grad.clone() for each in trainer.diffusion.parameters()]


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_micro_batches_change_neither_the_loss_nor_the_gradient(accumulate):
    """Draws are made for the whole batch; offsets, guesses and dropped labels among them."""
    whole = build(dropout=0.0)
    cut = build(dropout=0.0, accumulate=accumulate)
    for trainer in (whole, cut):
        trainer.diffusion.loss.offset_noise_strength = 0.3
    (loss, ours), (expected, theirs) = gradients(cut), gradients(whole)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    for one, other in zip(ours, theirs, strict=True):
        assert float((one - other).norm()) <= 1e-4 * float(other.norm())


@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v"])
def test_every_weight_learns_in_bfloat16(objective, needs_bfloat16):
    """The first guess of self-conditioning casts the same weights, without gradient."""
    trainer = build(precision="bfloat16", objective=objective)
    exact = build(precision="float32", objective=objective)
    gradients(exact)
    loss, _ = gradients(trainer)
    assert loss.dtype == torch.float32
    for (name, ours), theirs in zip(trainer.diffusion.named_parameters(), exact.diffusion.parameters(), strict=True):
        assert ours.dtype == ours.grad.dtype == torch.float32
        assert (ours.grad != 0).any() == (theirs.grad != 0).any(), name
    both = [torch.cat([each.grad.flatten() for each in one.diffusion.parameters()]) for one in (trainer, exact)]
    assert float(torch.cosine_similarity(*both, dim=0)) > 0.99


def test_learning_rate_warms_up_over_the_given_images():
    rates = [report.learning_rate for report in build(learning_rate=1e-3, warmup_images=32).steps()]
    assert rates[:5] == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3])


def test_training_lowers_the_loss():
    trainer = build(images=4000, batch_size=16, learning_rate=2e-3, dropout=0.0)
    # Plain images: with random pixels there is nothing to learn but the noise.
    trainer.data = TensorData(torch.full((30, 1, 4, 4), 200, dtype=torch.uint8), trainer.data.labels)
    losses = [float(report.loss) for report in trainer.steps()]
    assert sum(losses[-30:]) < 0.5 * sum(losses[:30])


def test_a_step_whose_gradient_is_not_finite_changes_nothing():
    trainer = build(max_skipped_share=0.5)
    list(islice(trainer.steps(), 2))
    before = {name: each.clone() for name, each in state(trainer).items()}
    poison = trainer.diffusion.model.final_conv.bias.register_hook(lambda grad: grad * float("nan"))
    (report,) = islice(trainer.steps(), 1)
    assert report.skipped
    assert [int(before.pop(each)) for each in (*BAD_STEPS, "trainer/images")] == [0, 0, 0, 16]
    after = state(trainer)
    assert [int(after.pop(each)) for each in (*BAD_STEPS, "trainer/images")] == [1, 1, 1, 24]
    assert_same(after, before)
    poison.remove()
    (report,) = islice(trainer.steps(), 1)
    assert not report.skipped
    assert any(not torch.equal(each, before[name]) for name, each in state(trainer).items())


def test_training_stops_when_no_gradient_is_finite_any_more():
    trainer = build(images=1000, max_skipped_share=1.0)
    trainer.diffusion.model.final_conv.bias.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(TrainingDiverged, match="10 steps in a row.*learning_rate"):
        list(trainer.steps())
    assert trainer.step == MAX_BAD_STEPS


def test_a_training_that_is_stopped_again_and_again_diverges_as_soon():
    def diverging(step, tensors):
        trainer = build(images=1000, max_skipped_share=1.0)
        trainer.diffusion.model.final_conv.bias.register_hook(lambda grad: grad * float("inf"))
        trainer.restore(step, tensors)
        return trainer

    trainer = diverging(0, build().tensors())
    for _ in range(3):
        list(islice(trainer.steps(), 3))
        trainer = diverging(trainer.step, trainer.tensors())
    with pytest.raises(TrainingDiverged):
        next(trainer.steps())
    assert trainer.step == MAX_BAD_STEPS


def test_ema_forgets_by_half_over_its_half_life():
    module = torch.nn.Linear(1, 1)
    ema = EMA(module, halflife_images=1000)
    start = ema.module.weight.clone()
    with torch.no_grad():
        module.weight.fill_(5.0)
    for step in range(100):
        ema.update(module, images=10**6 + step, batch_size=10)
    torch.testing.assert_close(ema.module.weight, 5.0 + (start - 5.0) * 0.5)


def test_ema_follows_closely_while_few_images_are_seen():
    ema = EMA(torch.nn.Linear(1, 1), halflife_images=1000)
    assert ema.decay(0, 64) == 0.0
    assert ema.decay(640, 64) == pytest.approx(0.5 ** (64 / 32))
    assert ema.decay(10**6, 64) == pytest.approx(0.5 ** (64 / 1000))


def test_arguments_outside_their_range_are_named():
    with pytest.raises(ValueError, match="batch_size is 8; it must be a multiple of accumulate, which is 3"):
        build(accumulate=3)
    with pytest.raises(ValueError, match="halflife_images is 0"):
        build(ema_halflife_images=0)
    with pytest.raises(ValueError, match="data is empty"):
        Trainer(build().diffusion, TensorData(torch.zeros(0, 1, 4, 4, dtype=torch.uint8)), images=1)
    for name in ("images", "batch_size", "accumulate"):
        with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
            build(**{name: 0})


def test_images_in_memory_that_are_no_bytes_are_refused_and_not_darkened():
    with pytest.raises(ValueError, match=r"images is torch.float32 of shape .* become it by \(images \* 255\)"):
        TensorData(torch.rand(8, 1, 4, 4))
    with pytest.raises(ValueError, match=r"labels has the shape \(3,\); it must be \(8,\)"):
        TensorData(torch.zeros(8, 1, 4, 4, dtype=torch.uint8), torch.arange(3))


@pytest.mark.parametrize(("low", "high"), [(0.0, 255.0), (-1.0, 1.0)])
def test_images_that_are_surely_not_in_0_1_are_refused(low, high):
    diffusion = GaussianDiffusion(Unet(8, dim_mults=(1,), channels=1), image_size=4)
    images = torch.rand(2, 1, 4, 4)
    images[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    with pytest.raises(ValueError, match=rf"the images lie between {low:g} and {high:g}; they must lie in \[0, 1\]"):
        diffusion(low + (high - low) * images)
    # The control: resizing may overshoot, and a process that does not normalise takes what it gets.
    assert diffusion(1.1 * images - 0.05).isfinite()
    assert GaussianDiffusion(diffusion.model, image_size=4, auto_normalize=False)(2.0 * images - 1.0).isfinite()
