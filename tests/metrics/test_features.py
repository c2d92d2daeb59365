import numpy as np
import pytest
import torch

from diffusion_core.metrics.features import FeatureNetwork, extract, to_tensor


def some_images(count, size=8, channels=1):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


@pytest.mark.parametrize("size", [8, 9, 16, 33, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_image_gives_finite_features(size, channels):
    features = extract(FeatureNetwork(size, channels, features=24), some_images(3, size, channels))
    assert features.shape == (3, 24)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()


def test_smaller_images_than_eight_pixels_are_refused():
    with pytest.raises(ValueError, match="image_size is 7"):
        FeatureNetwork(7, 1, features=8)


def test_features_of_an_image_do_not_depend_on_the_batch(reference, train):
    images = train.images(slice(0, 50))
    whole = extract(reference.extractor, images)
    for batch_size in (1, 7, 50):
        np.testing.assert_allclose(extract(reference.extractor, images, batch_size), whole, atol=1e-5)


def test_extracting_changes_nothing_in_the_network():
    network = FeatureNetwork(8, 1, features=8).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    extract(network, some_images(20))
    assert network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_features_of_the_images_learned_from_have_mean_zero_and_variance_one(reference):
    assert np.abs(reference.train_features.mean(axis=0)).max() < 0.2
    np.testing.assert_allclose(reference.train_features.std(axis=0), 1.0, atol=0.2)


def test_pixels_become_minus_one_to_one_with_channels_first():
    images = np.array([[[[0, 255, 51]]]], dtype=np.uint8)
    torch.testing.assert_close(to_tensor(images), torch.tensor([[[[-1.0]], [[1.0]], [[-0.6]]]]))
