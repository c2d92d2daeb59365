import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from diffusion_core.metrics import neighbours
from diffusion_core.metrics.neighbours import nearest, pairwise


@pytest.mark.parametrize("block", [30, 90, neighbours.BLOCK_VALUES])
@pytest.mark.parametrize("k", [1, 4, 30])
def test_equals_an_independent_search(monkeypatch, block, k):
    monkeypatch.setattr(neighbours, "BLOCK_VALUES", block)
    random = np.random.default_rng(0)
    points, among = random.normal(size=(100, 5)), random.normal(size=(30, 5))
    distances, indices = NearestNeighbors(n_neighbors=k).fit(among).kneighbors(points)
    found = nearest(points, among, k)
    np.testing.assert_allclose(found.distances, distances)
    np.testing.assert_array_equal(found.indices, indices)


def test_a_copy_is_at_distance_zero_far_from_the_origin():
    points = np.random.default_rng(0).normal(size=(20, 64)).astype(np.float32) + 1000.0
    assert nearest(points, points).distances.max() == 0.0


def test_distances_of_many_features_have_all_their_digits():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(40, 300)) + 1e3, random.normal(size=(30, 300)) + 1e3
    expected = np.linalg.norm(x[:, None] - y, axis=2)
    np.testing.assert_allclose(pairwise(x, y), expected, rtol=1e-13)
