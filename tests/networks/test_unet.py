from itertools import product

import pytest
import torch
import torch.nn.functional as F

from diffusion_core import Unet
from diffusion_core.networks.attention import Attention, LinearAttention
from diffusion_core.networks.layers import SinusoidalPosEmb
from diffusion_core.networks.norm import RMSNorm


def test_the_usual_network_has_the_usual_size():
    """35.7 million parameters at dim 64 x (1, 2, 4, 8), as in denoising-diffusion-pytorch."""
    assert sum(each.numel() for each in Unet(64).parameters()) == 35_711_491


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("self_condition", [False, True])
@pytest.mark.parametrize("full_attn", [None, True, (True, False, False)])
def test_output_has_the_shape_of_the_images(channels, self_condition, full_attn):
    network = Unet(8, dim_mults=(1, 2, 3), channels=channels, self_condition=self_condition, full_attn=full_attn)
    images = torch.randn(2, channels, 8, 12)
    assert network(images, torch.tensor([0, 999])).shape == images.shape


def test_no_previous_guess_is_a_guess_of_zeros():
    network = Unet(8, dim_mults=(1, 2), channels=1, self_condition=True).eval()
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([5, 7])
    assert torch.equal(network(x, t), network(x, t, torch.zeros_like(x)))
    assert not torch.equal(network(x, t), network(x, t, torch.ones_like(x)))


def test_no_class_is_the_label_after_the_last():
    network = Unet(8, dim_mults=(1, 2), channels=1, num_classes=4).eval()
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([5, 7])
    assert torch.equal(network(x, t), network(x, t, None, torch.tensor([4, 4])))
    assert not torch.equal(network(x, t), network(x, t, None, torch.tensor([1, 2])))


def test_every_parameter_has_a_gradient():
    network = Unet(8, dim_mults=(1, 2), channels=1, self_condition=True, num_classes=3)
    network(torch.randn(2, 1, 8, 8), torch.tensor([1, 2]), None, torch.tensor([0, 1])).square().mean().backward()
    assert [name for name, each in network.named_parameters() if each.grad is None] == []


def test_dropout_acts_in_training_only():
    network = Unet(8, dim_mults=(1, 2), channels=1, dropout=0.5)
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([3])
    assert not torch.equal(network(x, t), network(x, t))
    network.eval()
    assert torch.equal(network(x, t), network(x, t))


def test_rms_norm_gives_each_pixel_a_mean_square_of_one():
    x = torch.randn(2, 12, 3, 3, dtype=torch.float64) * 7
    torch.testing.assert_close(RMSNorm(12).double()(x).square().mean(1), torch.ones(2, 3, 3, dtype=torch.float64))


def test_time_embedding_is_sines_and_cosines_of_falling_frequencies():
    embedded = SinusoidalPosEmb(6)(torch.tensor([0.0, 2.0]))
    frequencies = torch.tensor([1.0, 1e-2, 1e-4])
    torch.testing.assert_close(embedded[0], torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0]))
    torch.testing.assert_close(embedded[1], torch.cat(((2 * frequencies).sin(), (2 * frequencies).cos())))


def two_heads(kind):
    """A layer of two heads of four channels, an input, and its queries, keys and values."""
    layer = kind(6, heads=2, dim_head=4).double()
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    return layer, x, layer.to_qkv(layer.norm(x)).chunk(3, dim=1)


def test_attention_is_softmax_over_pixels_and_memory():
    layer, x, (q, k, v) = two_heads(Attention)
    out = torch.zeros(2, 8, 15, dtype=torch.float64)
    for b, head in product(range(2), range(2)):
        rows = slice(4 * head, 4 * head + 4)
        queries = q[b, rows].reshape(4, 15).T
        keys = torch.cat((layer.mem_kv[0, head], k[b, rows].reshape(4, 15).T))
        values = torch.cat((layer.mem_kv[1, head], v[b, rows].reshape(4, 15).T))
        out[b, rows] = (F.softmax(queries @ keys.T / 2.0, dim=-1) @ values).T
    torch.testing.assert_close(layer(x), layer.to_out(out.reshape(2, 8, 3, 5)) + x)


def test_the_plain_formula_of_attention_is_the_fused_kernels():
    torch.manual_seed(0)
    fused = Unet(8, dim_mults=(1, 2), channels=1)
    plain = Unet(8, dim_mults=(1, 2), channels=1, flash_attn=False)
    plain.load_state_dict(fused.state_dict())
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 4])
    torch.testing.assert_close(plain(x, t), fused(x, t), rtol=1e-4, atol=1e-5)
    assert plain.mid_attn.attend is not fused.mid_attn.attend
    # What the fused kernel has no derivative for: a gradient of a gradient.
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(plain(x, t).square().sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert bool(torch.isfinite(x.grad).all())


def test_linear_attention_weighs_a_context_of_softmaxed_keys():
    layer, x, (q, k, v) = two_heads(LinearAttention)
    out = torch.zeros(2, 8, 15, dtype=torch.float64)
    for b, head in product(range(2), range(2)):
        rows = slice(4 * head, 4 * head + 4)
        keys = F.softmax(torch.cat((layer.mem_kv[0, head], k[b, rows].reshape(4, 15)), dim=1), dim=1)
        values = torch.cat((layer.mem_kv[1, head], v[b, rows].reshape(4, 15)), dim=1)
        queries = F.softmax(q[b, rows].reshape(4, 15), dim=0) / 2.0
        for pixel in range(15):
            out[b, rows, pixel] = (keys @ values.T).T @ queries[:, pixel]
    torch.testing.assert_close(layer(x), layer.to_out(out.reshape(2, 8, 3, 5)) + x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 5}, "dim is 5"),
        ({"dim": 8, "dim_mults": ()}, "dim_mults is empty"),
        ({"dim": 8, "dim_mults": (1, 2), "full_attn": (True,)}, "full_attn has 1 values"),
        (
            {"dim": 8, "dim_mults": (1, 2), "attn_heads": (4, 4, 4)},
            "attn_heads has 3 values; it must have one for each",
        ),
        ({"dim": 8, "num_classes": 0}, "num_classes is 0; it must be at least 1, or None"),
        ({"dim": 8, "cond_drop_prob": 1.0}, "cond_drop_prob is 1.0"),
    ],
)
def test_arguments_outside_their_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Unet(**options)


def test_images_that_cannot_be_halved_are_refused():
    with pytest.raises(ValueError, match="8 x 10.*multiples of 4"):
        Unet(8, dim_mults=(1, 2, 4), channels=1)(torch.randn(1, 1, 8, 10), torch.tensor([0]))
