"""The two ways of writing the network are one function: equal outputs and gradients of every parameter and input."""

import pytest
import torch

from diffusion_core import Unet
from diffusion_core.networks import eager_cpu
from diffusion_core.networks.norm import RMSNorm

NETWORKS = {
    "usual": {},
    "self-conditioned": {"self_condition": True},
    "class-conditional": {"num_classes": 3},
    "learned variance": {"learned_variance": True},
    "all softmax": {"full_attn": True, "flash_attn": False},
    "no linear attention": {"linear_attn": False},
}


def build(options):
    torch.manual_seed(0)
    network = Unet(8, dim_mults=(1, 2, 3), channels=2, **options).double()
    with torch.no_grad():
        for each in network.parameters():
            # Gains and biases too: ones and zeros would hide a term that is left out.
            each.add_(0.1 * torch.randn_like(each))
    return network


def computed(network, options, plain, monkeypatch):
    """The output and every gradient."""
    monkeypatch.setattr(eager_cpu, "pays", lambda _: not plain)
    generator = torch.Generator().manual_seed(1)
    x, guess, towards = torch.randn(3, 4, 2, 8, 12, dtype=torch.float64, generator=generator)
    x.requires_grad_()
    classes = torch.tensor([0, 1, 2, 3]) if "num_classes" in options else None
    output = network(x, torch.tensor([0, 10, 500, 999]), guess if network.self_condition else None, classes)
    (output[:, :2] * towards + output[:, -2:] ** 2).sum().backward()
    gradients = {name: each.grad.clone() for name, each in network.named_parameters()} | {"x": x.grad}
    network.zero_grad()
    return {"output": output.detach(), **gradients}


@pytest.mark.parametrize("name", NETWORKS)
def test_both_ways_have_the_same_output_and_gradients(name, monkeypatch):
    network = build(NETWORKS[name])
    ours, plain = (computed(network, NETWORKS[name], plain, monkeypatch) for plain in (False, True))
    for part, value in plain.items():
        assert float(value.norm()) > 0.0, part
        assert float((ours[part] - value).norm() / value.norm()) < 1e-11, part


def test_the_comparison_sees_a_gradient_that_is_off_by_a_thousandth(monkeypatch):
    network = build({})
    true = computed(network, {}, True, monkeypatch)
    backward = eager_cpu._RMSNorm.backward

    def off(ctx, *gradients):
        dx, da, db = backward(ctx, *gradients)
        return dx, da * 1.001, db

    monkeypatch.setattr(eager_cpu._RMSNorm, "backward", staticmethod(off))
    ours = computed(network, {}, False, monkeypatch)
    name = "mid_block1.block2.norm.g"
    assert float((ours[name] - true[name]).norm() / true[name].norm()) > 5e-4


def test_the_order_for_an_eager_cpu_is_for_an_eager_cpu_alone():
    x = torch.zeros(1)
    assert eager_cpu.pays(x)
    assert not eager_cpu.pays(x.to("meta"))
    seen = []

    @torch.compile(backend="eager")
    def compiled(x):
        return x + (1.0 if eager_cpu.pays(x) else 2.0)

    seen.append(float(compiled(x)))
    assert seen == [2.0]


def test_gains_are_vectors_and_lie_in_a_state_dict_as_in_denoising_diffusion_pytorch():
    norm = RMSNorm(4)
    with torch.no_grad():
        norm.g.copy_(torch.arange(4.0))
    state = norm.state_dict()
    assert (norm.g.shape, state["g"].shape) == ((4,), (1, 4, 1, 1))
    other = RMSNorm(4)
    other.load_state_dict(state)
    assert torch.equal(other.g, norm.g)
    assert state["g"].shape == (1, 4, 1, 1)
    with pytest.raises(RuntimeError, match="size mismatch for g"):
        RMSNorm(5).load_state_dict(state)


@pytest.mark.parametrize("plain", [False, True])
def test_a_small_scale_that_comes_in_bfloat16_is_not_rounded_away(plain, monkeypatch):
    monkeypatch.setattr(eager_cpu, "pays", lambda _: not plain)
    norm, x, scale = RMSNorm(8), torch.randn(2, 8, 3, 3), torch.full((2, 8), 0.003, dtype=torch.bfloat16)
    ratio = norm(x, scale) / norm(x)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 1.0 + float(scale[0, 0])), rtol=1e-5, atol=0.0)
