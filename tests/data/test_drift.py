"""The population stability index is that of its formula, 0 for equal values, and sees sizes that are all equal."""

import math

import numpy as np
import pytest

from diffusion_core.data.report.drift import FLOOR, by_chance, drift, population_stability_index


def by_hand(earlier: list[float], now: list[float]) -> float:
    """The same by loops, with bins (-inf, e1), {e1}, (e1, e2), ..., (ek, inf)."""
    ordered, edges = sorted(earlier), []
    for tenth in range(1, 10):
        # Hazen's quantile: value i of n, from 0, lies at (i + 0.5) / n.
        place = min(max(tenth / 10 * len(ordered) - 0.5, 0), len(ordered) - 1)
        below = math.floor(place)
        above = min(below + 1, len(ordered) - 1)
        edge = ordered[below] + (place - below) * (ordered[above] - ordered[below])
        if edge not in edges:
            edges.append(edge)
    bins = []
    for number, edge in enumerate(edges):
        low = edges[number - 1] if number else -math.inf
        bins += [lambda x, low=low, edge=edge: low < x < edge, lambda x, edge=edge: x == edge]
    bins.append(lambda x: x > edges[-1])
    total = 0.0
    for holds in bins:
        p = max(sum(map(holds, earlier)) / len(earlier), FLOOR)
        q = max(sum(map(holds, now)) / len(now), FLOOR)
        total += (q - p) * math.log(q / p)
    return total


def test_it_is_what_a_person_computes() -> None:
    # A tenth of the earlier values is in each bin. All new ones are in the last bin.
    earlier, now = np.arange(10.0), np.full(5, 100.0)
    expected = (1 - 0.1) * math.log(1 / 0.1) + 9 * (FLOOR - 0.1) * math.log(FLOOR / 0.1)
    assert population_stability_index(earlier, now) == pytest.approx(expected)
    # Half of the new values are below the median, where four bins have a tenth and one has more.
    now = np.array([0.0, 0, 1, 2, 3, 4, 5, 6, 7, 8])
    expected = (0.2 - 0.1) * math.log(2) + (FLOOR - 0.1) * math.log(FLOOR / 0.1)
    assert population_stability_index(earlier, now) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(20))
def test_it_agrees_with_loops(seed: int) -> None:
    random = np.random.default_rng(seed)
    earlier, now = random.normal(0, 1, random.integers(1, 300)), random.normal(0.3, 1.5, random.integers(1, 300))
    if seed % 2:
        # Ties.
        earlier, now = earlier.round(), now.round()
    expected = by_hand(earlier.tolist(), now.tolist())
    assert population_stability_index(earlier, now) == pytest.approx(expected)


@pytest.mark.parametrize("values", [np.full(7, 32.0), np.arange(100.0), np.array([3.0])], ids=["equal", "all", "one"])
def test_equal_values_have_not_drifted(values: np.ndarray) -> None:
    assert population_stability_index(values, values) == 0.0
    assert population_stability_index(values, np.repeat(values, 3)) == pytest.approx(0.0)


@pytest.mark.parametrize("size", [31.0, 33.0])
def test_a_size_that_all_images_had_and_lose_is_seen(size: float) -> None:
    assert population_stability_index(np.full(50, 32.0), np.full(50, size)) > 9


def test_two_samples_of_one_distribution_drift_by_little() -> None:
    random = np.random.default_rng(0)
    values = [population_stability_index(random.random(2000), random.random(2000)) for _ in range(50)]
    assert np.mean(values) == pytest.approx(9 * (2 / 2000), rel=0.3)


@pytest.mark.parametrize(("earlier", "now"), [(100, 100), (2000, 150)])
def test_what_chance_gives_is_taken_off(earlier: int, now: int) -> None:
    random = np.random.default_rng(0)
    pairs = [(random.normal(size=earlier), random.normal(size=now)) for _ in range(200)]
    index = np.mean([population_stability_index(*pair) for pair in pairs])
    chance = by_chance(*pairs[0], 0)
    assert chance == pytest.approx(9 * (1 / earlier + 1 / now))
    # Small counts have a little more.
    assert chance < index < 1.3 * chance
    left = [drift({"red": one}, {"red": other}, 0)["red"] for one, other in pairs]
    assert min(left) == 0.0
    assert np.mean(left) < index / 3


def test_values_that_are_all_equal_have_no_chance() -> None:
    assert by_chance(np.full(50, 32.0), np.full(5, 32.0), 0) == 0.0


@pytest.mark.parametrize(("shared", "new"), [(1000, 100), (500, 500), (0, 1000)])
def test_images_that_both_versions_have_add_no_chance(shared: int, new: int) -> None:
    random = np.random.default_rng(0)
    found = []
    for _ in range(200):
        both = random.normal(size=shared)
        earlier, now = (np.append(both, random.normal(size=new)) for _ in range(2))
        found.append(population_stability_index(earlier, now))
    assert np.mean(found) == pytest.approx(by_chance(earlier, now, shared), rel=0.15)


def test_what_really_drifts_is_seen_among_images_that_stay() -> None:
    random = np.random.default_rng(0)
    earlier = random.normal(size=100)
    now = np.append(earlier[:80], earlier[80:] + 2.0)
    index = population_stability_index(earlier, now)
    assert drift({"red": earlier}, {"red": now}, 80)["red"] > 0.7 * index > 0.05
    # The control: as if all were new, it would be hidden.
    assert drift({"red": earlier}, {"red": now}, 0)["red"] < 0.3 * index


def test_the_drift_of_several_columns_is_their_mean() -> None:
    random = np.random.default_rng(0)
    earlier, now = random.normal(size=(300, 4)), random.normal(0.5, size=(200, 4))
    each = [population_stability_index(*pair) - by_chance(*pair, 20) for pair in zip(earlier.T, now.T, strict=True)]
    assert drift({"features": earlier}, {"features": now}, 20)["features"] == pytest.approx(np.mean(each))


def test_no_values_are_an_error() -> None:
    with pytest.raises(ValueError, match="values of both"):
        population_stability_index(np.empty(0), np.ones(3))


def test_what_one_version_alone_has_is_not_compared() -> None:
    values = {"size": np.ones(3), "red": np.ones(3)}
    assert drift(values, {"size": np.ones(4), "brightness": np.ones(4)}, 0) == {"size": pytest.approx(0.0)}
    assert drift({}, values, 0) == {}
