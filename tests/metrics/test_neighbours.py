import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from diffusion_core.metrics.neighbours import BLOCK, nearest, within_reach


@pytest.mark.parametrize("count", [1, BLOCK, BLOCK + 1])
@pytest.mark.parametrize("k", [1, 4, 30])
def test_equals_an_independent_search(count, k):
    random = np.random.default_rng(0)
    points, among = random.normal(size=(count, 5)), random.normal(size=(30, 5))
    distances, indices = NearestNeighbors(n_neighbors=k).fit(among).kneighbors(points)
    found = nearest(points, among, k)
    np.testing.assert_allclose(found.distances, distances)
    np.testing.assert_array_equal(found.indices, indices)


def test_a_copy_is_at_distance_zero_far_from_the_origin():
    points = np.random.default_rng(0).normal(size=(20, 64)).astype(np.float32) + 1000.0
    assert nearest(points, points).distances.max() == 0.0


def test_a_point_on_the_rim_of_a_ball_is_within_reach():
    centres = np.array([[0.0, 0.0], [10.0, 0.0]])
    points = np.array([[0.0, 2.0], [0.0, 2.1], [10.0, 0.5], [5.0, 0.0]])
    assert within_reach(points, centres, np.array([2.0, 1.0])).tolist() == [True, False, True, False]
