"""The validation loss is that of the process, of the same random numbers each time, and keeps the best weights."""

import json
import math
from copy import deepcopy

import numpy as np
import pytest
import torch

from diffusion_core import GaussianDiffusion, TensorData, Unet
from diffusion_core.training.randomness import StepRandomness
from diffusion_core.training.validation import COLUMNS, Validation


def build(objective="pred_v", **options):
    torch.manual_seed(1)
    network = Unet(8, dim_mults=(1, 2), channels=1, self_condition=True, num_classes=3, **options)
    return GaussianDiffusion(network, image_size=4, timesteps=40, objective=objective).eval()


def images(count=30, labelled=True):
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (count, 1, 4, 4), dtype=torch.uint8, generator=generator)
    return TensorData(pixels, torch.arange(count) % 3 if labelled else None)


def measured(diffusion, data=None, seed=0, batch_size=7, times=1):
    validation = Validation(data or images(), images=1000, every_images=1000, share=0.5, seed=seed)
    return [validation.measure(diffusion, 100 * time, batch_size) for time in range(times)]


def test_it_is_the_same_again_and_another_one_of_another_seed():
    diffusion = build()
    first, again = measured(diffusion, times=2)
    assert {**again, "images": 0} == first
    assert tuple(first) == COLUMNS
    (other,) = measured(diffusion, seed=1)
    assert other["loss"] != first["loss"]


@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v"])
def test_it_is_the_loss_of_the_process_at_even_timesteps(objective):
    diffusion, data = build(objective), images(16)
    validation = Validation(data, images=1000, every_images=1000, share=0.5, seed=3)
    assert sorted(validation._chosen.tolist()) == [*range(16)]
    random = StepRandomness.of(diffusion, 16, validation.seed, 0)
    # T = 40 and 16 images: 1.25, 3.75, ... rounded down.
    times = torch.tensor([1, 3, 6, 8, 11, 13, 16, 18, 21, 23, 26, 28, 31, 33, 36, 38])
    pixels, labels = data.batch(validation._chosen)
    with torch.no_grad():
        expected = diffusion.p_losses(
            diffusion.normalize(pixels / 255.0),
            times,
            random.noise,
            loss_reduction="none",
            classes=labels,
            self_cond_mask=random.self_cond_mask,
            unlabelled=random.unlabelled,
        )
    found = validation.losses(diffusion, 16)
    torch.testing.assert_close(found, expected.double(), rtol=1e-6, atol=0)
    row = validation.measure(diffusion, 0, 16)
    assert row["loss"] == pytest.approx(float(expected.mean()), rel=1e-6)
    for number in range(4):
        quarter = float(expected[4 * number : 4 * number + 4].mean())
        assert row[f"loss_quarter_{number + 1}"] == pytest.approx(quarter, rel=1e-6)


def test_smaller_parts_change_nothing_but_rounding():
    diffusion = build()
    (whole,), (parts,) = measured(diffusion, batch_size=30), measured(diffusion, batch_size=4)
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)


def test_immiscible_noise_is_not_assigned_because_that_depends_on_the_parts():
    plain = build()
    immiscible = GaussianDiffusion(plain.model, image_size=4, timesteps=40, objective="pred_v", immiscible=True).eval()
    (expected,) = measured(plain)
    for batch_size in (30, 4):
        (found,) = measured(immiscible, batch_size=batch_size)
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert immiscible.loss.immiscible


def with_losses(best, last):
    """A validation whose second loss is above its first, of these images."""
    validation = Validation(images(), images=1000, every_images=1000, share=0.5, seed=0)
    for number, losses in enumerate((best, last)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Validation, "losses", lambda *_, losses=losses: torch.as_tensor(losses, dtype=torch.float64))
            validation.measure(build(), number, 8)
    return validation


def test_the_last_weights_are_worse_only_if_more_than_chance():
    random = np.random.default_rng(0)
    best = random.exponential(size=30)
    # By pairs: the same shift of every image is sure, however much images differ.
    assert with_losses(best, best + 1e-3).is_last_worse
    noise = random.normal(size=30)
    noise -= noise.mean()
    error = noise.std(ddof=1) / np.sqrt(30)
    assert not with_losses(best, best + noise + 1.9 * error).is_last_worse
    assert with_losses(best, best + noise + 2.1 * error).is_last_worse
    assert not with_losses(best, best - 1e-3).is_last_worse
    # One image says nothing, and what is not finite is worse.
    assert not with_losses([1.0], [2.0]).is_last_worse
    assert with_losses([1.0], [np.nan]).is_last_worse
    assert with_losses(best, best * np.nan).is_last_worse


def test_labels_and_dropout_do_not_matter_where_there_are_none():
    diffusion = GaussianDiffusion(Unet(8, dim_mults=(1, 2), channels=1, dropout=0.5), image_size=4, timesteps=40).eval()
    first, again = measured(diffusion, images(labelled=False), times=2)
    assert first["loss"] == again["loss"]


def test_no_random_state_and_no_weight_changes():
    diffusion = build()
    before, state = deepcopy(diffusion.state_dict()), torch.get_rng_state()
    measured(diffusion)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in diffusion.state_dict().items())
    assert all(parameter.grad is None for parameter in diffusion.parameters())


@pytest.mark.parametrize(
    ("available", "images", "every", "share", "count"),
    [
        # 0.05 * 6400 * 3.5 / 1.5 = 746.7
        (10_000, 25_600, 6400, 0.05, 746),
        (385, 25_600, 6400, 0.05, 385),
        (10_000, 10**8, 10**6, 0.05, 2048),
        # One at the end alone, of a training that is shorter: 0.05 * 1000 * 3.5 / 1.5 = 116.7
        (10_000, 1000, 50_000, 0.05, 116),
        # As for any longer one, which continues it; that at the end is one more: 0.05 * 5000 * 3.5 / 1.5 = 583.3
        (10_000, 6000, 5000, 0.05, 583),
        (9, 25_600, 6400, 0.0, 0),
        (9, 800, 8, 0.05, 0),
    ],
)
def test_it_takes_its_share_of_the_computation(available, images, every, share, count):
    data = TensorData(torch.zeros(available, 1, 4, 4, dtype=torch.uint8))
    validation = Validation(data, images, every, share, seed=0)
    assert validation.count * max(images // every, 1) * 1.5 <= share * images * 3.5
    assert validation.count == count
    if count == 0:
        assert validation.measure(build(), 100, 4) is None
        assert (validation.rows, validation.best_row, validation.tensors()) == ([], None, {})
        assert not validation.is_last_worse


def scaled(factor):
    diffusion = build()
    with torch.no_grad():
        for parameter in diffusion.model.parameters():
            parameter.mul_(factor)
    return diffusion


def test_the_weights_of_the_lowest_loss_are_kept():
    validation = Validation(images(), images=1000, every_images=1000, share=0.5, seed=0)
    models = [scaled(3.0), scaled(1.0), scaled(math.nan), scaled(4.0)]
    for number, model in enumerate(models):
        validation.measure(model, number, 8)
    losses = [row["loss"] for row in validation.rows]
    assert losses[1] == min(losses[0], losses[1], losses[3])
    assert math.isnan(losses[2])
    assert validation.best_row["images"] == 1
    kept, expected = validation.best, models[1].model.state_dict()
    assert kept.keys() == expected.keys()
    assert all(torch.equal(kept[name], expected[name]) for name in expected)
    # They are copies.
    with torch.no_grad():
        next(models[1].model.parameters()).zero_()
    assert not all(torch.equal(kept[name], expected[name]) for name in expected)


def test_without_a_finite_loss_nothing_is_kept():
    validation = Validation(images(), images=1000, every_images=1000, share=0.5, seed=0)
    validation.measure(scaled(math.inf), 1, 8)
    assert validation.best_row is None
    assert validation.tensors() == {}


def test_what_is_restored_goes_on_as_before():
    first = Validation(images(), images=1000, every_images=1000, share=0.5, seed=0)
    first.measure(scaled(1.0), 1, 8)
    second = Validation(images(), images=1000, every_images=1000, share=0.5, seed=0)
    second.restore(json.loads(json.dumps(first.state())), first.best, build().model.state_dict())
    for each in (first, second):
        each.measure(scaled(3.0), 2, 8)
    assert first.rows == second.rows
    assert first.is_last_worse
    assert second.is_last_worse
    assert all(torch.equal(first.best[name], second.best[name]) for name in first.best)


@pytest.mark.parametrize("lost", ["all", "one", "shape", "dtype"])
def test_weights_of_another_network_are_refused(lost):
    validation = Validation(images(), images=1000, every_images=1000, share=0.5, seed=0)
    validation.measure(build(), 1, 8)
    best = dict(validation.best)
    name = next(iter(best))
    if lost == "shape":
        best[name] = torch.zeros(3)
    elif lost == "dtype":
        best[name] = best[name].double()
    elif lost == "one":
        del best[name]
    else:
        best = {}
    again = Validation(images(), images=1000, every_images=1000, share=0.5, seed=0)
    with pytest.raises(ValueError, match="not those of this network"):
        again.restore(validation.state(), best, build().model.state_dict())
