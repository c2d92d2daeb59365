"""What a process and its calls take and refuse, and which of its parts can be read and replaced."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffusion_core import DDIM, DDPM, GaussianDiffusion, Unet
from diffusion_core.process.objectives import PredictV
from diffusion_core.process.schedules import Sigmoid
from tests.conftest import Network, constant


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "pred_score"}, "objective is 'pred_score'"),
        ({"timesteps": 0}, "timesteps is 0"),
        ({"beta_schedule": "linear", "timesteps": 10}, "timesteps is 10"),
        ({"beta_schedule": "quadratic"}, "beta_schedule is 'quadratic'"),
        ({"sampling_timesteps": 1001}, "sampling_timesteps is 1001; it must lie in 1 .. 1000"),
        ({"sampling_timesteps": 0}, "sampling_timesteps is 0; it must lie in 1 .. 1000"),
        ({"ddim_sampling_eta": 2.0}, r"ddim_sampling_eta is 2.0; it must lie in \[0, 1\]"),
        ({"min_snr_loss_weight": True, "min_snr_gamma": 0.0}, "min_snr_gamma is 0.0; it must be greater than 0"),
        ({"offset_noise_strength": float("nan")}, "offset_noise_strength is nan; it must be at least 0"),
        ({"schedule_fn_kwargs": {"bogus": 1}}, "beta_schedule sigmoid has no option bogus; it has start, end, tau"),
        ({"beta_schedule": Sigmoid(), "schedule_fn_kwargs": {"tau": 1.0}}, "schedule_fn_kwargs is .* given by name"),
        ({"weighting": "snr", "min_snr_loss_weight": True}, "min_snr_loss_weight is True and weighting is 'snr'"),
    ],
)
def test_arguments_outside_their_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        GaussianDiffusion(constant(0.0), image_size=4, **options)


def test_a_process_has_a_sampler_of_its_own():
    network = Unet(8, dim_mults=(1, 2), channels=1)
    x_t = torch.randn(2, 1, 4, 4)
    few = GaussianDiffusion(network, image_size=4, timesteps=20, sampling_timesteps=5, ddim_sampling_eta=0.0)
    assert torch.equal(few.sample(2, noise=x_t), few.sample(2, noise=x_t, sampler=DDIM(steps=5)))
    assert not torch.equal(few.sample(2, noise=x_t), few.sample(2, noise=x_t, sampler=DDIM(steps=4)))
    for options in ({}, {"sampling_timesteps": 20}):
        assert GaussianDiffusion(network, image_size=4, timesteps=20, **options).sampler == DDPM()
    some = GaussianDiffusion(network, image_size=4, timesteps=20, sampling_timesteps=5, ddim_sampling_eta=0.5)
    assert some.sampler == DDIM(steps=5, eta=0.5)


def test_a_schedule_object_and_its_name_give_the_same_process():
    by_name = GaussianDiffusion(constant(0.0), image_size=4, schedule_fn_kwargs={"tau": 0.5})
    by_object = GaussianDiffusion(constant(0.0), image_size=4, beta_schedule=Sigmoid(tau=0.5))
    assert torch.equal(by_name.betas, by_object.betas)


@pytest.mark.parametrize("size", [0, 6, (8, 10), (8, 8, 8)])
def test_a_size_that_the_network_cannot_halve_is_named(size):
    network = Unet(8, dim_mults=(1, 2, 4), channels=1)
    with pytest.raises(ValueError, match=r"image_size is \(.*\); it must be two multiples of 4 for this network"):
        GaussianDiffusion(network, image_size=size)


def test_arguments_of_the_calls_outside_their_range_are_named():
    diffusion, images = GaussianDiffusion(constant(0.0), image_size=4), torch.rand(2, 1, 4, 4)
    t = torch.tensor([1, 2])
    for call, message in (
        (lambda: diffusion.p_losses(torch.rand(2, 3, 4, 4), t), r"the images are \(3, 4, 4\); this process is for"),
        (lambda: diffusion.p_losses(images, t, offset_noise_strength=-1.0), "offset_noise_strength is -1.0"),
        (lambda: diffusion.interpolate(images[:, :, :2], images[:, :, :2]), r"the images are \(1, 2, 4\)"),
        (lambda: diffusion.interpolate(images, images, t=1000), r"t is 1000; it must lie in 0 .. 999"),
        (lambda: diffusion(images.byte()), r"the images are torch.uint8; they must be floating point"),
        (lambda: diffusion(images, classes=[0, 1]), "classes are given, but the network has no num_classes"),
        (lambda: diffusion.sample(0), "batch_size is 0; it must be at least 1"),
        (lambda: diffusion.sample(2, noise=images[:1]), r"noise is \(1, 1, 4, 4\); it must be \(2, 1, 4, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_images_and_classes_that_do_not_fit_are_refused():
    diffusion = GaussianDiffusion(Unet(8, dim_mults=(1, 2), channels=1, num_classes=3), image_size=4)
    with pytest.raises(ValueError, match=r"images are \(3, 4, 4\)"):
        diffusion(torch.rand(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"the label 3; labels must lie in 0 .. 2"):
        diffusion(torch.rand(2, 1, 4, 4), classes=torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="no num_classes"):
        GaussianDiffusion(constant(0.0), image_size=4)(torch.rand(1, 1, 4, 4), classes=torch.tensor([0]))


def test_attributes_of_the_parts_are_read_under_their_usual_names():
    diffusion = GaussianDiffusion(constant(0.3), image_size=4, timesteps=100)
    assert torch.equal(diffusion.alphas_cumprod, diffusion.schedule.alphas_cumprod)
    assert torch.equal(diffusion.loss_weight, diffusion.loss.loss_weight)
    with pytest.raises(AttributeError, match="no attribute 'bettas'"):
        _ = diffusion.bettas


BUILT_WITH = ("betas", "loss_weight", "offset_noise_strength", "num_classes", "objective")


@pytest.mark.parametrize("name", [*BUILT_WITH, "sampling_timesteps", "ddim_sampling_eta", "is_ddim_sampling"])
def test_what_a_process_was_built_with_cannot_be_set_without_effect(name):
    """Samplers and the loss have computed with it already."""
    diffusion = GaussianDiffusion(constant(0.3), image_size=4)
    with pytest.raises(AttributeError, match=f"{name}.* cannot be set|{name}.* has no setter"):
        setattr(diffusion, name, getattr(diffusion, name))


class Wrapper(torch.nn.Module):
    """Forwards calls and no attribute, as DataParallel does."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *inputs):
        return self.module(*inputs)


def test_a_network_can_be_wrapped_after_construction():
    torch.manual_seed(0)
    network = Unet(8, dim_mults=(1, 2), channels=1, self_condition=True, num_classes=3, cond_drop_prob=0.99)
    diffusion = GaussianDiffusion(network, image_size=4, timesteps=10).eval()
    options = {"noise": torch.randn(2, 1, 4, 4), "randn": torch.zeros_like, "classes": torch.tensor([0, 2])}
    plain = diffusion.sample(2, **options)
    diffusion.model = Wrapper(diffusion.model)
    assert torch.equal(diffusion.sample(2, **options), plain)
    asked = []
    network.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[3]))
    diffusion(torch.rand(64, 1, 4, 4), classes=torch.zeros(64, dtype=torch.long)).backward()
    # Dropped labels are those of the network behind the wrapper.
    assert float((asked[-1] == 3).float().mean()) > 0.8


def test_a_network_can_be_replaced_by_one_of_another_kind():
    diffusion = GaussianDiffusion(Unet(8, dim_mults=(1,), channels=1, num_classes=3), image_size=4, timesteps=10)
    fed_back = []
    other = Network(lambda x, t, s: fed_back.append(s) or x * 0.5, self_condition=True)
    other.num_classes = None
    diffusion.model = other
    diffusion.sample(2)
    assert sum(each is not None for each in fed_back) == 9
    with pytest.raises(ValueError, match="no num_classes"):
        diffusion(torch.rand(2, 1, 4, 4), classes=torch.tensor([0, 1]))


@pytest.mark.parametrize("t", [5, torch.tensor(5), np.int64(5)], ids=repr)
def test_one_step_takes_a_whole_number_of_any_kind(t):
    diffusion = GaussianDiffusion(Network(lambda x, t, _: x * (t[:, None, None, None] == 5)), image_size=4)
    x = torch.randn(2, 1, 4, 4)
    torch.manual_seed(0)
    ahead, x0 = diffusion.p_sample(x, 5)
    torch.manual_seed(0)
    again, x0_again = diffusion.p_sample(x, t)
    assert torch.equal(ahead, again)
    assert torch.equal(x0, x0_again)


def test_a_loss_refuses_the_denoiser_of_another_process():
    one, other = (GaussianDiffusion(constant(0.0), image_size=4, timesteps=steps) for steps in (100, 50))
    with pytest.raises(ValueError, match="another schedule or objective"):
        one.loss(other.denoiser, torch.rand(2, 1, 4, 4), torch.tensor([3, 4]))
    one.loss(replace(one.denoiser, objective=PredictV()), torch.rand(2, 1, 4, 4), torch.tensor([3, 4]))
    deepcopy(one.loss)(one.denoiser, torch.rand(2, 1, 4, 4), torch.tensor([3, 4]))
    copied = deepcopy(one)
    copied.loss(copied.denoiser, torch.rand(2, 1, 4, 4), torch.tensor([3, 4]))
