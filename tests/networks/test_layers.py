"""Each layer against its formula, in both of the ways that layers are written; see networks/eager_cpu.py."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffusion_core import Unet
from diffusion_core.networks import eager_cpu
from diffusion_core.networks.attention import LinearAttention
from diffusion_core.networks.layers import Downsample, ResnetBlock, Upsample
from diffusion_core.networks.norm import RMSNorm


@pytest.fixture(params=["hand-ordered", "plain"], autouse=True)
def way(request, monkeypatch):
    """How layers are written, wherever the test runs."""
    monkeypatch.setattr(eager_cpu, "pays", lambda _: request.param == "hand-ordered")
    return request.param


def randomised(layer):
    with torch.no_grad():
        for each in layer.parameters():
            each.normal_()
    return layer.double()


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("layout", [torch.clone, channels_last])
def test_normalisation_and_its_gradients_are_those_of_the_formula(modulated, layout):
    norm = randomised(RMSNorm(6))
    x = layout(torch.randn(3, 6, 4, 5, dtype=torch.float64)).requires_grad_()
    scale, shift = torch.randn(2, 3, 6, dtype=torch.float64).requires_grad_() if modulated else (None, None)

    def formula():
        y = F.normalize(x, dim=1) * norm.g[:, None, None] * 6**0.5
        return y * (scale[:, :, None, None] + 1) + shift[:, :, None, None] if modulated else y

    inputs = [x, norm.g, *((scale, shift) if modulated else ())]
    torch.testing.assert_close(norm(x, scale, shift), formula())
    weights = torch.randn_like(x)
    ours = torch.autograd.grad((norm(x, scale, shift) * weights).sum(), inputs)
    theirs = torch.autograd.grad((formula() * weights).sum(), inputs)
    torch.testing.assert_close(ours, theirs)


def test_normalisation_can_be_differentiated_twice():
    norm = randomised(RMSNorm(4))
    x = torch.randn(2, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    scale, shift = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x, scale, shift))
    assert torch.autograd.gradgradcheck(norm, (x, scale, shift))
    assert torch.autograd.gradgradcheck(norm, (x,))


def test_pixels_without_any_signal_stay_so():
    x = torch.zeros(1, 4, 2, 2, requires_grad=True)
    y = RMSNorm(4)(x)
    y.sum().backward()
    assert torch.equal(y, torch.zeros_like(x))
    assert bool(torch.isfinite(x.grad).all())


def test_doubling_is_nearest_neighbour_and_a_convolution():
    layer = randomised(Upsample(5, 7))
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(x), nn.Sequential(*layer)(x))


def test_halving_moves_pixels_into_channels_before_a_convolution():
    layer = randomised(Downsample(5, 7))
    x = torch.randn(2, 5, 6, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(x), nn.Sequential(*layer)(x))


def test_doubling_keeps_the_parameters_of_denoising_diffusion_pytorch():
    assert set(Upsample(5, 7).state_dict()) == {"1.weight", "1.bias"}


def test_a_skip_connection_is_appended_to_the_input_and_gets_a_gradient_of_its_own():
    block = randomised(ResnetBlock(5, 3, time_emb_dim=4))
    x, skip = (channels_last(torch.randn(2, channels, 4, 6, dtype=torch.float64)) for channels in (2, 3))
    t = torch.randn(2, 4, dtype=torch.float64)
    inputs = [x.requires_grad_(), skip.requires_grad_(), *block.parameters()]

    def gradients(output):
        return torch.autograd.grad(output.square().sum(), inputs)

    ours = gradients(block(x, t, skip))
    torch.testing.assert_close(ours, gradients(block(torch.cat((x, skip), dim=1), t)))
    assert torch.autograd.gradgradcheck(lambda x, skip: block(x, t[:1], skip), (x[:1, :, :1], skip[:1, :, :1]))


def test_a_compiled_skip_connection_gets_a_dense_gradient():
    """A slice of the concatenated gradient would be copied by each layer that reads it."""
    block = randomised(ResnetBlock(5, 3, time_emb_dim=4))
    x, skip = (channels_last(torch.randn(2, channels, 4, 6, dtype=torch.float64)) for channels in (2, 3))
    t, inputs = torch.randn(2, 4, dtype=torch.float64), [x.requires_grad_(), skip.requires_grad_()]
    torch._dynamo.reset()
    compiled = torch.compile(block, backend="aot_eager", dynamic=False, fullgraph=True)
    ours = torch.autograd.grad(compiled(x, t, skip).square().sum(), inputs)
    torch.testing.assert_close(ours, torch.autograd.grad(block(x, t, skip).square().sum(), inputs))
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in ours)


def test_linear_attention_bears_keys_far_apart():
    """exp() of them overflows, and the largest of all is in another head, or in memory."""
    layer = LinearAttention(6, heads=2, dim_head=4)
    with torch.no_grad():
        layer.to_qkv.weight.mul_(300.0)
        layer.mem_kv[0].mul_(300.0)
    x = torch.randn(2, 6, 3, 5, requires_grad=True)
    layer(x).sum().backward()
    assert bool(torch.isfinite(layer(x)).all())
    assert bool(torch.isfinite(x.grad).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_a_network_may_be_made_half_as_precise(dtype):
    torch.manual_seed(0)
    exact = Unet(16, dim_mults=(1, 2), channels=1)
    x, t = torch.randn(4, 1, 8, 8), torch.tensor([1, 200, 500, 900])
    half = Unet(16, dim_mults=(1, 2), channels=1)
    half.load_state_dict(exact.state_dict())
    output = half.to(dtype)(x.to(dtype), t)
    assert output.dtype == dtype
    assert float((output.float() - exact(x, t)).norm() / exact(x, t).norm()) < 0.05


def test_under_autocast_nothing_between_the_layers_goes_back_to_float32():
    """Going to and fro took half of a training step on a CPU."""
    network = Unet(16, dim_mults=(1, 2), channels=1)
    kinds = set()
    for layer in network.modules():
        if isinstance(layer, RMSNorm | nn.Conv2d | nn.SiLU | LinearAttention):
            layer.register_forward_hook(lambda _, arguments, output: kinds.update({output.dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        network(torch.randn(2, 1, 8, 8), torch.tensor([1, 2]))
    assert kinds == {torch.bfloat16}
