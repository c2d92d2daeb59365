"""The process is the one of its equations: noise, posterior, predictions, and the loss of a training."""

import pytest
import torch

from diffusion_core import DDIM, GaussianDiffusion, Unet
from tests.conftest import Network, constant

OBJECTIVES = ["pred_noise", "pred_x0", "pred_v"]
SCHEDULES = ["linear", "cosine", "sigmoid"]


def float64(network=None, **options):
    """A process whose tables are the float64 ones."""
    return GaussianDiffusion(network or constant(0.0), image_size=4, **options).double()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    x0 = torch.rand(6, 1, 4, 4, generator=generator, dtype=torch.float64) * 2 - 1
    noise = torch.randn(6, 1, 4, 4, generator=generator, dtype=torch.float64)
    t = torch.tensor([0, 1, 250, 500, 900, 998])
    return x0, noise, t


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_round_trips_between_x0_noise_and_v(schedule, batch):
    x0, noise, t = batch
    diffusion = float64(beta_schedule=schedule)
    x_t = diffusion.q_sample(x0, t, noise)
    v = diffusion.predict_v(x0, t, noise)
    tolerance = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(diffusion.predict_start_from_noise(x_t, t, noise), x0, **tolerance)
    torch.testing.assert_close(diffusion.predict_noise_from_start(x_t, t, x0), noise, **tolerance)
    torch.testing.assert_close(diffusion.predict_start_from_v(x_t, t, v), x0, **tolerance)


def test_the_process_in_v_is_a_rotation(batch):
    x0, noise, t = batch
    diffusion = float64()
    x_t, v = diffusion.q_sample(x0, t, noise), diffusion.predict_v(x0, t, noise)
    torch.testing.assert_close(x_t.square() + v.square(), x0.square() + noise.square())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_posterior_is_bayes_rule(schedule, batch):
    """q(x_{t-1} | x_t, x0) is N(x_{t-1}; sqrt(abar_{t-1}) x0, .) times N(x_t; sqrt(a_t) x_{t-1}, b_t)."""
    x0, noise, _ = batch
    t = torch.tensor([1, 2, 250, 500, 900, 998])
    diffusion = float64(beta_schedule=schedule)
    x_t = diffusion.q_sample(x0, t, noise)
    mean, variance, _ = diffusion.q_posterior(x0, x_t, t)
    for i, step in enumerate(t.tolist()):
        alpha_bar, previous = diffusion.alpha_bar(step), diffusion.alpha_bar(step - 1)
        alpha = alpha_bar / previous
        precision = 1 / (1 - previous) + alpha / (1 - alpha)
        weighted = previous**0.5 * x0[i] / (1 - previous) + alpha**0.5 * x_t[i] / (1 - alpha)
        torch.testing.assert_close(variance[i].squeeze(), torch.tensor(1 / precision, dtype=torch.float64))
        torch.testing.assert_close(mean[i], weighted / precision, rtol=1e-8, atol=1e-10)


def test_stored_tables_are_the_float64_ones_rounded_once():
    diffusion = GaussianDiffusion(constant(0.0), image_size=4, beta_schedule="cosine")
    reference = float64(beta_schedule="cosine")
    for name in ("sqrt_recipm1_alphas_cumprod", "posterior_mean_coef1", "posterior_variance"):
        stored = getattr(diffusion, name)
        assert stored.dtype == torch.float32
        torch.testing.assert_close(stored.double(), getattr(reference, name), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_perfect_network_predicts_x0_and_noise_and_has_no_loss(objective, batch):
    x0, noise, t = batch

    def oracle(x, t, _):
        targets = {"pred_noise": noise, "pred_x0": x0, "pred_v": diffusion.predict_v(x0, t, noise)}
        return targets[objective]

    diffusion = float64(Network(oracle), objective=objective)
    prediction = diffusion.model_predictions(diffusion.q_sample(x0, t, noise), t)
    torch.testing.assert_close(prediction.pred_x_start, x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(prediction.pred_noise, noise, rtol=1e-9, atol=1e-9)
    assert float(diffusion.p_losses(x0, t, noise)) < 1e-20


def test_clipping_moves_the_noise_only_where_it_is_rederived(batch):
    x0, noise, t = batch
    x_t = float64().q_sample(3 * x0, t, noise)
    raw = float64(Network(lambda x, t, _: noise), objective="pred_noise")
    kept = raw.model_predictions(x_t, t, clip_x_start=True)
    assert float(kept.pred_x_start.abs().max()) <= 1.0
    assert torch.equal(kept.pred_noise, noise)
    moved = raw.model_predictions(x_t, t, clip_x_start=True, rederive_pred_noise=True)
    torch.testing.assert_close(raw.q_sample(moved.pred_x_start, t, moved.pred_noise), x_t)
    assert not torch.allclose(moved.pred_noise, noise)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_loss_is_the_weighted_mean_of_the_samples_errors(objective, batch):
    x0, noise, t = batch
    diffusion = float64(objective=objective, min_snr_loss_weight=True, min_snr_gamma=4.0)
    target = {"pred_noise": noise, "pred_x0": x0, "pred_v": diffusion.predict_v(x0, t, noise)}[objective]
    expected = 0.0
    for i, step in enumerate(t.tolist()):
        snr = diffusion.alpha_bar(step) / (1 - diffusion.alpha_bar(step))
        ratio = {"pred_noise": snr, "pred_x0": 1.0, "pred_v": snr + 1.0}[objective]
        expected += float(target[i].square().mean()) * min(snr, 4.0) / ratio / len(t)
    assert float(diffusion.p_losses(x0, t, noise)) == pytest.approx(expected, rel=1e-10)


def test_offset_noise_is_shared_by_the_pixels_of_a_channel_and_part_of_the_target():
    seen = []
    network = Network(lambda x, t, _: seen.append(x) or torch.zeros_like(x), channels=2)
    diffusion = GaussianDiffusion(network, image_size=8, objective="pred_noise", offset_noise_strength=3.0)
    t = torch.full((2000,), 999)
    loss = float(diffusion.p_losses(torch.zeros(2000, 2, 8, 8), t))
    noise = seen[0]
    assert float(noise.mean((-1, -2)).var()) == pytest.approx(9.0 + 1 / 64, rel=0.1)
    assert float(noise.var((-1, -2)).mean()) == pytest.approx(1.0, rel=0.05)
    assert loss == pytest.approx(10.0, rel=0.1)


def test_half_of_the_batch_is_self_conditioned_and_the_first_guess_has_no_gradient():
    calls = []

    def record(x, t, x_self_cond):
        calls.append((x, x_self_cond, torch.is_grad_enabled()))
        return x * scale

    scale = torch.ones((), requires_grad=True)
    diffusion = GaussianDiffusion(Network(record, self_condition=True), image_size=4, objective="pred_x0")
    loss = diffusion(torch.rand(8, 1, 4, 4))
    loss.backward()
    (first, _, first_grad), (second, condition, second_grad) = calls
    assert (len(first), first_grad) == (4, False)
    assert (len(second), second_grad) == (8, True)
    assert int((condition.flatten(1).abs().sum(1) > 0).sum()) == 4
    assert not condition.requires_grad


def test_an_odd_batch_is_self_conditioned_for_half_of_the_images_on_average():
    counts = []

    def record(x, t, x_self_cond):
        if x_self_cond is not None:
            counts.append(int((x_self_cond.flatten(1).abs().sum(1) > 0).sum()))
        return x

    diffusion = GaussianDiffusion(Network(record, self_condition=True), image_size=4, objective="pred_x0")
    torch.manual_seed(0)
    for _ in range(200):
        diffusion(torch.rand(1, 1, 4, 4))
    assert 70 <= sum(counts) <= 130


def test_loss_depends_on_nothing_but_the_generator():
    diffusion = GaussianDiffusion(
        Unet(8, dim_mults=(1, 2), channels=1, self_condition=True, num_classes=3), image_size=4
    )
    images, classes = torch.rand(5, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1])

    def loss(seed):
        return diffusion(images, classes=classes, generator=torch.Generator().manual_seed(seed)).item()

    assert loss(1) == loss(1)
    assert loss(1) != loss(2)


def test_p_sample_adds_no_noise_at_the_last_step():
    diffusion = GaussianDiffusion(constant(0.25), image_size=4, objective="pred_x0")
    x = torch.randn(3, 1, 4, 4)
    image, x0 = diffusion.p_sample(x, 0)
    torch.testing.assert_close(image, x0)
    one, _ = diffusion.p_sample(x, 500)
    other, _ = diffusion.p_sample(x, 500)
    assert not torch.equal(one, other)


def test_interpolation_at_the_ends_depends_on_one_image_alone():
    network = Network(lambda x, t, _: x)
    diffusion = GaussianDiffusion(network, image_size=4, objective="pred_x0", timesteps=50)
    one, other, third = torch.rand(3, 2, 1, 4, 4)
    torch.manual_seed(5)
    first = diffusion.interpolate(one, other, t=20, lam=0.0)
    torch.manual_seed(5)
    second = diffusion.interpolate(one, third, t=20, lam=0.0)
    assert torch.equal(first, second)
    with pytest.raises(ValueError, match="x1 and x2"):
        diffusion.interpolate(one, other[:1])


def test_given_times_and_strength_are_those_that_are_used():
    seen = []
    network = Network(lambda x, t, _: seen.append((x, t)) or torch.zeros_like(x))
    diffusion = GaussianDiffusion(network, image_size=4, auto_normalize=False)
    times = torch.tensor([7, 7, 7, 999])
    zeros = torch.zeros(4, 1, 4, 4)
    diffusion(zeros, times=times)
    assert seen[0][1].tolist() == times.tolist()
    diffusion.p_losses(zeros, torch.full((4,), 999), zeros, offset_noise_strength=5.0)
    # All pixels of a channel share the offset, and there was no other noise.
    assert float(seen[1][0].flatten(1).std(1).max()) < 1e-6
    assert float(seen[1][0].abs().max()) > 1.0


def test_noise_of_another_precision_is_taken_as_it_is_needed():
    network = Unet(8, dim_mults=(1, 2), channels=1)
    diffusion = GaussianDiffusion(network, image_size=4, timesteps=10)
    noise = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    assert torch.equal(
        diffusion.sample(2, noise=noise, sampler=DDIM(steps=2)),
        diffusion.sample(2, noise=noise.float(), sampler=DDIM(steps=2)),
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("loss", ["l2", "l1", "huber"])
def test_under_autocast_the_network_alone_is_in_lower_precision(objective, loss):
    network = Unet(8, dim_mults=(1, 2), channels=1, self_condition=True)
    diffusion = GaussianDiffusion(network, image_size=4, timesteps=10, objective=objective, loss=loss)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        loss = diffusion(torch.rand(4, 1, 4, 4))
        images = diffusion.sample(2, sampler=DDIM(steps=3))
    loss.backward()
    assert loss.dtype == images.dtype == torch.float32
    assert all(each.grad is not None for each in network.parameters())
