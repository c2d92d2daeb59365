import pytest
import torch
from diffusers.guiders.guider_utils import rescale_noise_cfg

from diffusion_core import DDIM, DDPM, GaussianDiffusion, Guidance, Unet
from diffusion_core.samplers.guidance import GuidedDenoiser
from diffusion_core.samplers.loop import sample_loop
from tests.conftest import Network
from tests.samplers.every import every_sampler


class Labelled(Network):
    """A network whose x0-hat depends on the label alone, and which notes what it is asked."""

    num_classes = 3

    def __init__(self, **options):
        super().__init__(None, **options)
        self.asked = []

    def forward(self, x, t, x_self_cond=None, classes=None):
        self.asked.append((t, x_self_cond, classes))
        level = torch.full_like(t, self.num_classes) if classes is None else classes
        return torch.zeros_like(x) + 0.1 * (level.to(x.dtype)[:, None, None, None] + 1)


@pytest.fixture(scope="module")
def conditional():
    torch.manual_seed(0)
    network = Unet(8, dim_mults=(1, 2), channels=1, self_condition=True, num_classes=3)
    return GaussianDiffusion(network, image_size=8, timesteps=100).eval()


def test_the_guess_moves_away_from_the_one_without_a_label():
    conditional, unconditional = torch.randn(2, 3, 1, 4, 4)
    torch.testing.assert_close(Guidance(scale=1.0).blend(conditional, unconditional), conditional)
    torch.testing.assert_close(Guidance(scale=0.0).blend(conditional, unconditional), unconditional)
    torch.testing.assert_close(
        Guidance(scale=3.0).blend(conditional, unconditional), 3 * conditional - 2 * unconditional
    )


@pytest.mark.parametrize("rescale", [0.3, 1.0])
def test_rescaling_is_that_of_diffusers(rescale):
    conditional, unconditional = torch.randn(2, 3, 2, 4, 6, dtype=torch.float64)
    guided = unconditional + 4.0 * (conditional - unconditional)
    expected = rescale_noise_cfg(guided, conditional, guidance_rescale=rescale)
    torch.testing.assert_close(Guidance(scale=4.0, rescale=rescale).blend(conditional, unconditional), expected)


def guided(diffusion, sampler, classes, guidance):
    """Two guided images, in [-1, 1]."""
    denoiser = GuidedDenoiser(diffusion.denoiser, guidance)
    noise = torch.randn(2, 1, 4, 4)
    return list(sample_loop(denoiser, sampler, noise, classes=classes))[-1]


def test_a_scale_of_zero_asks_without_the_label_alone():
    network = Labelled()
    diffusion = GaussianDiffusion(network, image_size=4, timesteps=10, objective="pred_x0")
    images = guided(diffusion, DDIM(steps=2), torch.tensor([0, 2]), Guidance(scale=0.0))
    torch.testing.assert_close(images, torch.full_like(images, 0.4))
    assert all(each.tolist() == [3, 3] for _, _, each in network.asked)


def test_an_image_without_contrast_is_not_divided_by_it():
    flat, pixel = torch.ones(2, 1, 4, 4), torch.randn(2, 1, 1, 1)
    for conditional, unconditional in ((torch.randn(2, 1, 4, 4), None), (pixel, pixel)):
        unconditional = (conditional * 2 - flat) if unconditional is None else unconditional
        guided = Guidance(scale=2.0, rescale=1.0).blend(conditional, unconditional)
        assert bool(torch.isfinite(guided).all())


def test_the_interval_is_open_below_and_closed_above():
    guidance = Guidance(scale=2.0, interval=(1.0, 3.0))
    assert [guidance.acts_at(alpha_bar) for alpha_bar in (0.6, 0.5, 0.2, 0.1, 0.05, 0.0)] == [
        False, False, True, True, False, False,
    ]  # fmt: skip
    assert Guidance(scale=2.0, interval=(0.0, float("inf"))).acts_at(0.0)


def test_guidance_acts_in_its_interval_alone_and_costs_nothing_outside():
    network = Labelled()
    diffusion = GaussianDiffusion(network, image_size=4, timesteps=100, objective="pred_x0")
    guidance = Guidance(scale=2.0, interval=(0.5, 4.0))
    guided(diffusion, DDPM(), torch.tensor([0, 1]), guidance)
    for t, _, _ in network.asked:
        alpha_bar = diffusion.alpha_bar(int(t[0]))
        inside = 0.5 < ((1 - alpha_bar) / alpha_bar) ** 0.5 <= 4.0
        assert len(t) == (4 if inside else 2)
    assert {len(t) for t, _, _ in network.asked} == {2, 4}


def test_both_passes_are_fed_the_guided_guess_before():
    network = Labelled(self_condition=True)
    diffusion = GaussianDiffusion(network, image_size=4, timesteps=10, objective="pred_x0")
    classes = torch.tensor([0, 2])
    guided(diffusion, DDIM(steps=3), classes, Guidance(scale=2.0))
    assert network.asked[0][1] is None
    assert all(each.tolist() == [0, 2, 3, 3] for _, _, each in network.asked)
    # 0.4 without a label, 0.1 and 0.3 with: twice as far from it is -0.2 and 0.2.
    expected = torch.tensor([-0.2, 0.2, -0.2, 0.2])[:, None, None, None].expand(4, 1, 4, 4)
    for _, fed_back, _ in network.asked[1:]:
        torch.testing.assert_close(fed_back, expected)


@pytest.mark.parametrize("sampler", [*every_sampler(4), DDIM(steps=4, eta=0.5)], ids=str)
def test_every_sampler_goes_with_labels_self_conditioning_and_guidance_at_once(conditional, sampler):
    x_t, classes = torch.randn(2, 1, 8, 8), torch.tensor([0, 2])
    draws = {"noise": x_t, "randn": torch.zeros_like, "classes": classes, "sampler": sampler}
    plain = conditional.sample(2, **draws)
    guided = conditional.sample(2, **draws, guidance=Guidance(scale=4.0, rescale=0.5))
    nowhere = conditional.sample(2, **draws, guidance=Guidance(scale=4.0, interval=(1e4, 1e5)))
    assert bool(torch.isfinite(guided).all())
    assert not torch.allclose(guided, plain, atol=1e-3)
    assert torch.equal(nowhere, plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": -1.0}, r"guidance.scale is -1.0; it must be at least 0"),
        ({"scale": float("nan")}, r"guidance.scale is nan"),
        ({"interval": (0.3,)}, r"guidance.interval is \(0.3,\)"),
        ({"rescale": 1.5}, r"guidance.rescale is 1.5; it must lie in \[0, 1\]"),
        ({"interval": (2.0, 1.0)}, r"guidance.interval is \(2.0, 1.0\); it must be two rising noise levels"),
    ],
)
def test_options_outside_their_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**options)


def test_guidance_without_labels_is_refused(conditional):
    with pytest.raises(ValueError, match=r"guidance.scale is 2.0; guidance needs classes"):
        conditional.sample(2, sampler=DDIM(steps=1), guidance=Guidance(scale=2.0))
    with pytest.raises(ValueError, match=r"guidance is 2.0; it must be a Guidance"):
        conditional.sample(2, sampler=DDIM(steps=1), guidance=2.0)


@pytest.mark.parametrize(
    ("scale", "interval", "passes"),
    [(1.0, None, (1,)), (0.0, None, (1,)), (0.0, (0.1, 2.0), (1,)), (2.0, None, (2,)), (2.0, (0.1, 2.0), (1, 2))],
)
def test_how_many_predictions_a_pass_makes_is_known_beforehand(scale, interval, passes):
    network = Unet(4, dim_mults=(1,), channels=1, num_classes=2)
    diffusion = GaussianDiffusion(network, image_size=4, timesteps=20)
    made = set()
    network.register_forward_hook(lambda _, inputs, __: made.add(len(inputs[0]) // 3))
    guidance = Guidance(scale=scale, interval=interval)
    diffusion.sample(3, sampler=DDIM(steps=10), classes=torch.tensor([0, 1, 0]), guidance=guidance)
    assert made == set(passes) == set(guidance.predictions)
