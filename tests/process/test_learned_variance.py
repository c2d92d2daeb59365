import math

import pytest
import torch

from diffusion_core import DDIM, DDPM, GaussianDiffusion, Guidance, LearnedGaussianDiffusion, Unet
from diffusion_core.process.variance import discretized_gaussian_nll, normal_kl
from tests.conftest import Network


def learned(function, objective="pred_x0", channels=1, **options):
    network = Network(function, channels=channels)
    network.out_dim = 2 * channels
    return LearnedGaussianDiffusion(
        network, image_size=4, objective=objective, auto_normalize=False, **options
    ).double()


def test_the_divergence_of_two_normals_is_torchs_in_bits():
    mean1, log_variance1, mean2, log_variance2 = torch.randn(4, 50, dtype=torch.float64)
    one = torch.distributions.Normal(mean1, (0.5 * log_variance1).exp())
    other = torch.distributions.Normal(mean2, (0.5 * log_variance2).exp())
    expected = torch.distributions.kl_divergence(one, other) / math.log(2)
    torch.testing.assert_close(normal_kl(mean1, log_variance1, mean2, log_variance2), expected)


def test_the_masses_of_all_pixel_values_add_up_to_one():
    values = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for mean, std in ((0.1, 0.02), (-0.95, 0.3), (0.0, 2.0)):
        mean, log_variance = torch.full_like(values, mean), torch.full_like(values, 2 * math.log(std))
        mass = 2.0 ** -discretized_gaussian_nll(values, mean, log_variance)
        assert float(mass.sum()) == pytest.approx(1.0, abs=1e-6)
        # The tanh that stands for the normal distribution function is off by less than 0.0004 of everything.
        exact = torch.distributions.Normal(float(mean[0]), std)
        middle = exact.cdf(values + 1 / 255) - exact.cdf(values - 1 / 255)
        torch.testing.assert_close(mass[1:-1], middle[1:-1], atol=4e-4, rtol=0)


@pytest.mark.parametrize(("level", "expected"), [(-1.0, "least"), (1.0, "greatest"), (0.0, "between")])
def test_the_variance_lies_between_its_two_bounds(level, expected):
    diffusion = learned(lambda x, t, _: torch.cat((torch.zeros_like(x), torch.full_like(x, level)), 1))
    t = torch.tensor([1, 500, 999])
    _, variance, log_variance, _ = diffusion.p_mean_variance(torch.randn(3, 1, 4, 4, dtype=torch.float64), t)
    least, greatest = diffusion.posterior_variance[t], diffusion.betas[t]
    wanted = {"least": least, "greatest": greatest, "between": (least * greatest).sqrt()}[expected]
    torch.testing.assert_close(variance[:, 0, 0, 0], wanted)
    torch.testing.assert_close(log_variance.exp(), variance)


@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v"])
def test_the_bound_trains_the_variance_and_the_simple_loss_the_mean(objective):
    def answer(x, t, _):
        return torch.cat((mean.expand_as(x), variance.expand_as(x)), 1)

    mean = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    variance = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    x0, noise = torch.rand(2, 4, 1, 4, 4, dtype=torch.float64)
    t = torch.tensor([0, 1, 500, 999])
    options = {"objective": objective, "weighting": "uniform"}
    learned(answer, vb_loss_weight=0.5, **options).p_losses(x0, t, noise).backward()
    simple = GaussianDiffusion(
        Network(lambda x, t, _: other.expand_as(x)), image_size=4, auto_normalize=False, **options
    ).double()
    other = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    simple.p_losses(x0, t, noise).backward()
    torch.testing.assert_close(mean.grad, other.grad)
    assert float(variance.grad) != 0.0


def bound_of_normal_data(level, std, t):
    """The bound at t of a process whose mean is the best for data from N(0, std^2), with a variance at that level."""

    def answer(x, t, _):
        alpha_bar = diffusion.alphas_cumprod[t][:, None, None, None]
        guess = x * alpha_bar.sqrt() * std**2 / (alpha_bar * std**2 + 1 - alpha_bar)
        return torch.cat((guess, torch.full_like(x, level)), 1)

    diffusion = learned(answer, vb_loss_weight=1.0, timesteps=1000)
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 4000, 1, 4, 4, dtype=torch.float64, generator=generator)
    with_bound = diffusion.p_losses(std * x0, torch.full((4000,), t), noise)
    diffusion.vb_loss_weight = 0.0
    return float(with_bound - diffusion.p_losses(std * x0, torch.full((4000,), t), noise)), diffusion


def test_the_best_variance_is_that_of_the_data():
    """It lies between the bounds, and is the variance of x_{t-1} given x_t."""
    std, t = 0.3, 400
    levels = torch.linspace(-1, 1, 41).tolist()
    found = min(levels, key=lambda level: bound_of_normal_data(level, std, t)[0])
    _, diffusion = bound_of_normal_data(found, std, t)
    alpha_bar, before = diffusion.alpha_bar(t), diffusion.alpha_bar(t - 1)
    total, total_before = alpha_bar * std**2 + 1 - alpha_bar, before * std**2 + 1 - before
    true = total_before - alpha_bar / before * total_before**2 / total
    least, greatest = float(diffusion.posterior_variance[t]), float(diffusion.betas[t])
    best = (math.log(true) - math.log(least)) / (math.log(greatest) - math.log(least))
    assert 0.1 < best < 0.9
    assert (found + 1) / 2 == pytest.approx(best, abs=0.15)


def test_samplers_use_it_and_guidance_and_self_conditioning_go_along():
    torch.manual_seed(0)
    network = Unet(8, dim_mults=(1, 2), channels=2, learned_variance=True, self_condition=True, num_classes=3)
    diffusion = LearnedGaussianDiffusion(network, image_size=(4, 8), timesteps=50).eval()
    loss = diffusion(torch.rand(4, 2, 4, 8), classes=torch.tensor([0, 1, 2, 0]))
    loss.backward()
    assert all(each.grad is not None for each in network.parameters())
    classes = torch.tensor([0, 2])
    for sampler in (DDPM(), DDPM(steps=5), DDIM(steps=5)):
        images = diffusion.sample(2, sampler=sampler, classes=classes, guidance=Guidance(scale=2.0))
        assert images.shape == (2, 2, 4, 8)
        assert bool(torch.isfinite(images).all())


def test_a_ddpm_step_has_the_learned_variance():
    level = 0.5
    diffusion = learned(lambda x, t, _: torch.cat((torch.zeros_like(x), torch.full_like(x, level)), 1))
    x_t, added = torch.randn(2, 2, 1, 4, 4, dtype=torch.float64)
    steps = diffusion.sample(2, True, sampler=DDPM(), noise=x_t, randn=lambda like: added)
    mean, _, log_variance, _ = diffusion.p_mean_variance(x_t, torch.tensor([999, 999]))
    torch.testing.assert_close(steps[:, 1], mean + (0.5 * log_variance).exp() * added)


def test_a_guided_step_has_the_variance_of_the_label():
    class Labelled(Network):
        num_classes, out_dim = 2, 2

        def forward(self, x, t, x_self_cond=None, classes=None):
            level = classes.to(x.dtype)[:, None, None, None] / 4
            return torch.cat((torch.zeros_like(x), level.expand_as(x)), 1)

    network = Labelled(None)
    network.out_dim = 2
    diffusion = LearnedGaussianDiffusion(network, image_size=4, objective="pred_x0", auto_normalize=False).double()
    x_t, added = torch.randn(2, 2, 1, 4, 4, dtype=torch.float64)
    classes, t = torch.tensor([0, 1]), torch.tensor([999, 999])
    options = {"sampler": DDPM(), "noise": x_t, "randn": lambda like: added, "classes": classes}
    guided = diffusion.sample(2, True, **options, guidance=Guidance(scale=3.0))[:, 1]
    mean, _, log_variance, _ = diffusion.p_mean_variance(x_t, t, classes=classes)
    torch.testing.assert_close(guided, mean + (0.5 * log_variance).exp() * added)


def test_a_network_without_the_second_half_is_refused():
    with pytest.raises(ValueError, match="out_dim is 3; LearnedGaussianDiffusion needs 6 for images of 3 channels"):
        LearnedGaussianDiffusion(Unet(8, dim_mults=(1,)), image_size=8)
    with pytest.raises(ValueError, match="out_dim is 6; GaussianDiffusion needs 3"):
        GaussianDiffusion(Unet(8, dim_mults=(1,), learned_variance=True), image_size=8)
    with pytest.raises(ValueError, match=r"vb_loss_weight is -1.0; it must be at least 0"):
        LearnedGaussianDiffusion(Unet(8, dim_mults=(1,), learned_variance=True), -1.0, image_size=8)
