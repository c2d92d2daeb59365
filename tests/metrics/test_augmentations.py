import pytest
import torch

from diffusion_core.metrics.fitting import cropped, relit, shifted


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_a_shift_moves_whole_pixels_at_most_its_share():
    images = torch.zeros(200, 1, 16, 16)
    images[:, :, 8, 8] = 1.0
    places = shifted(images).nonzero()[:, 2:]
    assert len(places) == 200
    assert {tuple(place) for place in (places - 8).tolist()} == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}


def test_a_shift_of_a_rectangle_is_a_share_of_each_side():
    images = torch.zeros(400, 1, 8, 32)
    images[:, :, 4, 16] = 1.0
    places = shifted(images).nonzero()[:, 2:]
    assert len(places) == 400
    assert {tuple(place) for place in (places - torch.tensor([4, 16])).tolist()} == {
        (y, x) for y in range(-1, 2) for x in range(-4, 5)
    }


def test_a_shift_repeats_the_border():
    assert torch.equal(shifted(torch.ones(20, 3, 8, 8)), torch.ones(20, 3, 8, 8))


def test_a_crop_lies_within_the_image_and_is_as_large_as_asked():
    ramp = torch.linspace(-1.0, 1.0, 32).expand(300, 1, 32, 32)
    extents = cropped(ramp, smallest=0.5)[:, 0, 16].diff(dim=1).sum(dim=1) / 2.0
    assert extents.min() > 0.45
    assert extents.max() <= 1.0
    assert extents.std() > 0.1
    assert torch.equal(cropped(ramp, smallest=1.0), ramp) or torch.allclose(
        cropped(ramp, smallest=1.0), ramp, atol=1e-5
    )


def test_a_crop_of_a_rectangle_has_its_shape():
    down, right = torch.meshgrid(torch.linspace(-1.0, 1.0, 16), torch.linspace(-1.0, 1.0, 64), indexing="ij")
    views = cropped(torch.stack((down, right)).expand(50, 2, 16, 64), smallest=0.5)
    # Away from the border, which repeats: what a crop holds of the height, it holds of the width.
    heights, widths = (
        (views[:, 0, 12, 32] - views[:, 0, 4, 32]) / 8 * 15,
        (views[:, 1, 8, 48] - views[:, 1, 8, 16]) / 32 * 63,
    )
    torch.testing.assert_close(heights, widths, atol=1e-3, rtol=0.0)
    assert heights.std() > 0.2


def test_light_changes_contrast_and_brightness_of_each_image_by_itself():
    images = torch.rand(500, 1, 8, 8) * 2.0 - 1.0
    changed = relit(images, strength=0.4)
    contrast = changed.std(dim=(1, 2, 3)) / images.std(dim=(1, 2, 3))
    brightness = (changed - images).mean(dim=(1, 2, 3))
    assert 0.6 <= contrast.min() < 0.65
    assert 1.35 < contrast.max() <= 1.4001
    assert -0.2001 <= brightness.min() < -0.15
    assert 0.15 < brightness.max() <= 0.2001
    torch.testing.assert_close(relit(images, strength=0.0), images)


def test_light_leaves_transparency_as_it_is():
    colour, alpha = torch.rand(50, 3, 8, 8) * 2.0 - 1.0, torch.rand(50, 1, 8, 8) * 2.0 - 1.0
    torch.manual_seed(1)
    changed = relit(torch.cat((colour, alpha), dim=1))
    torch.manual_seed(1)
    assert torch.equal(changed, torch.cat((relit(colour), alpha), dim=1))


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("view", [shifted, cropped, relit])
def test_no_view_mirrors(view, channels):
    # The right half is bright: so it must stay.
    half = torch.ones(100, channels, 16, 8)
    images = torch.cat((-half, half), dim=3)
    changed = view(images)
    assert (changed[..., -1] >= changed[..., 0]).all()
    assert changed.shape == images.shape
