import math

import pytest

from diffusion_core.config.settings import Comparison, Limit
from diffusion_core.lineage.promotion import Decision, broken_limits, lost_comparisons

NEVER = [math.nan, math.inf, -math.inf]


def test_a_figure_at_its_limit_passes_and_beyond_it_fails():
    limits = {"distance": Limit(at_most=10.0), "precision": Limit(at_least=0.5)}
    assert broken_limits({"distance": 10.0, "precision": 0.5}, limits) == []
    assert len(broken_limits({"distance": 10.001, "precision": 0.499}, limits)) == 2


def test_a_broken_limit_says_which_and_by_how_much():
    (reason,) = broken_limits({"distance": 12.5}, {"distance": Limit(at_most=10.0)})
    assert reason == "distance is 12.5, 2.5 above 10, its limit"
    (reason,) = broken_limits({"precision": 0.25}, {"precision": Limit(at_least=0.5)})
    assert reason == "precision is 0.25, 0.25 below 0.5, its limit"


def test_a_limit_can_bound_from_both_sides():
    between = {"x": Limit(at_least=1.0, at_most=2.0)}
    assert [bool(broken_limits({"x": x}, between)) for x in (0.9, 1.5, 2.1)] == [True, False, True]


@pytest.mark.parametrize("figure", NEVER)
@pytest.mark.parametrize("limit", [Limit(at_most=1.0), Limit(at_least=1.0)])
def test_what_is_not_finite_breaks_every_limit(figure, limit):
    assert broken_limits({"x": figure}, {"x": limit})


@pytest.mark.parametrize("figure", NEVER)
@pytest.mark.parametrize("better", ["lower", "higher"])
@pytest.mark.parametrize("bar", [1.0, math.nan, math.inf])
def test_what_is_not_finite_loses_every_comparison(figure, better, bar):
    assert lost_comparisons({"x": figure}, {"x": bar}, {"x": Comparison(better=better, tolerance=1.0)})


@pytest.mark.parametrize(
    ("better", "champion", "tolerance", "passes", "fails"),
    [
        ("lower", 1.0, 0.05, 1.05, 1.06),
        ("lower", 1.0, 0.0, 1.0, 1.001),
        ("higher", 1.0, 0.05, 0.95, 0.94),
        # An unbiased estimate of a squared distance may be negative; the tolerance must not turn its sign around.
        ("lower", -1.0, 0.05, -0.95, -0.94),
        ("higher", -1.0, 0.05, -1.05, -1.06),
        ("lower", 0.0, 0.5, 0.0, 1e-9),
        ("higher", 0.0, 0.5, 0.0, -1e-9),
    ],
)
def test_not_worse_allows_a_share_of_the_champions_figure(better, champion, tolerance, passes, fails):
    comparison = {"x": Comparison(better=better, tolerance=tolerance)}
    assert lost_comparisons({"x": passes}, {"x": champion}, comparison) == []
    assert len(lost_comparisons({"x": fails}, {"x": champion}, comparison)) == 1


def test_a_lost_comparison_says_by_how_much():
    (reason,) = lost_comparisons({"x": 1.2}, {"x": 1.0}, {"x": Comparison(better="lower", tolerance=0.05)})
    assert reason == "x is 1.2, 0.15 above 1.05, what the champion's 1 allows"


@pytest.mark.parametrize("better", ["lower", "higher"])
@pytest.mark.parametrize("bar", NEVER)
def test_a_champion_without_a_finite_figure_sets_no_bar(better, bar):
    assert lost_comparisons({"x": 5.0}, {"x": bar}, {"x": Comparison(better=better)}) == []


def test_a_decision_says_what_becomes_of_the_champion():
    assert Decision.on(2, 2, []).outcome == "unchanged"
    assert Decision.on(2, 1, []).sentence == "version 2 is the champion now; version 1 was it before"
    assert Decision.on(1, None, []).sentence == "version 1 is the champion now; there was none before"
    refused = Decision.on(2, 1, ["a", "b"])
    assert refused.outcome == "refused"
    assert refused.sentence == "version 2 is refused and version 1 stays the champion: a; b"
    assert Decision.on(1, None, ["a"]).sentence == "version 1 is refused and there is no champion: a"
