import numpy as np
import pytest
import torch

from diffusion_core.metrics.features import FeatureNetwork, extract, to_tensor


def some_images(count, size=(8, 8), channels=1):
    return np.random.default_rng(0).integers(0, 256, (count, *size, channels), dtype=np.uint8)


@pytest.mark.parametrize("size", [(8, 8), (9, 9), (16, 16), (33, 33), (64, 64), (8, 64), (64, 8), (9, 40)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_any_image_gives_finite_features(size, channels):
    features = extract(FeatureNetwork(size, channels, features=24), some_images(3, size, channels))
    assert features.shape == (3, 24)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()


@pytest.mark.parametrize("size", [(7, 7), (7, 32), (32, 7)])
def test_smaller_images_than_eight_pixels_are_refused(size):
    with pytest.raises(ValueError, match=rf"image_size is \[{size[0]}, {size[1]}\].*at least 8 on each side"):
        FeatureNetwork(size, 1, features=8)


@pytest.mark.parametrize(
    ("size", "left"), [((8, 8), (4, 4)), ((32, 32), (4, 4)), ((8, 32), (4, 16)), ((64, 16), (16, 4))]
)
def test_the_shorter_side_is_halved_down_to_about_four_pixels(size, left):
    network = FeatureNetwork(size, 1, features=8)
    assert network.stages(torch.zeros(1, 1, *size)).shape[2:] == left


def test_features_of_an_image_do_not_depend_on_the_batch(reference, train):
    images = train.images(slice(0, 50))
    whole = extract(reference.extractor, images)
    for batch_size in (1, 7, 50):
        np.testing.assert_allclose(extract(reference.extractor, images, batch_size), whole, atol=1e-5)


def test_extracting_changes_nothing_in_the_network():
    network = FeatureNetwork((8, 8), 1, features=8).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    extract(network, some_images(20))
    assert network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_features_of_the_images_learned_from_have_mean_zero_and_variance_one(reference):
    assert np.abs(reference.train_features.mean(axis=0)).max() < 0.2
    np.testing.assert_allclose(reference.train_features.std(axis=0), 1.0, atol=0.2)


def test_what_nobody_sees_has_no_features():
    images = some_images(20, channels=4)
    images[:, :, :4, 3] = 0
    repainted = images.copy()
    repainted[:, :, :4, :3] = 255 - images[:, :, :4, :3]
    network = FeatureNetwork((8, 8), 4, features=8)
    np.testing.assert_array_equal(extract(network, images), extract(network, repainted))
    # A fifth is seen: 200 * 51 / 255.
    pixel = to_tensor(np.array([[[[200, 255, 0, 51]]]], dtype=np.uint8))
    torch.testing.assert_close(pixel.flatten(), torch.tensor([40.0, 51.0, 0.0, 51.0]) / 127.5 - 1.0)


def test_pixels_become_minus_one_to_one_with_channels_first():
    images = np.array([[[[0, 255, 51]]]], dtype=np.uint8)
    torch.testing.assert_close(to_tensor(images), torch.tensor([[[[-1.0]], [[1.0]], [[-0.6]]]]))
