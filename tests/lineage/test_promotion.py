import math

import numpy as np
import pytest

from diffusion_core.config.settings import Comparison, Limit, PromoteSettings
from diffusion_core.lineage.evaluation import Evaluation
from diffusion_core.lineage.promotion import Decision, Grounds, broken_limits, lost_comparisons
from diffusion_core.metrics.estimate import GROUPS, Estimate, half_width

NEVER = [math.nan, math.inf, -math.inf]
# Deviations of the replicates, so that half of the interval is 0.1.
SHAPE = np.resize([1.0, -1.0], GROUPS)
DEVIATIONS = SHAPE * 0.1 / half_width(SHAPE)


def of(value, deviations=DEVIATIONS):
    return Estimate(value=value, replicates=tuple(value + deviations), floor=0.0, ceiling=9.0)


def evaluation(count=100.0, **values):
    estimates = {name: of(value) for name, value in values.items()}
    return Evaluation(key="k", counts={"sample_count": count, "compared_count": count}, estimates=estimates)


def test_a_figure_at_its_limit_passes_and_beyond_it_fails():
    limits = {"distance": Limit(at_most=10.0), "precision": Limit(at_least=0.5)}
    assert broken_limits({"distance": 10.0, "precision": 0.5}, limits) == []
    assert len(broken_limits({"distance": 10.001, "precision": 0.499}, limits)) == 2


def test_a_broken_limit_says_which_and_by_how_much():
    (reason,) = broken_limits({"distance": 12.5}, {"distance": Limit(at_most=10.0)})
    assert reason == "distance is 12.5, 2.5 above 10, its limit"
    (reason,) = broken_limits({"precision": 0.25}, {"precision": Limit(at_least=0.5)})
    assert reason == "precision is 0.25, 0.25 below 0.5, its limit"
    assert broken_limits({}, {"precision": Limit(at_least=0.5)}) == ["precision was not measured"]


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
    assert lost_comparisons({"x": of(figure)}, {"x": of(bar)}, {"x": Comparison(better=better)})


@pytest.mark.parametrize("bar", [math.nan, math.inf])
def test_a_champions_figure_that_is_not_finite_or_not_measured_compares_nothing(bar):
    assert lost_comparisons({"x": of(5.0)}, {"x": of(bar)}, {"x": Comparison(better="lower")}) == []
    assert lost_comparisons({"x": of(5.0)}, {}, {"x": Comparison(better="lower")}) == []
    assert lost_comparisons({}, {"x": of(5.0)}, {"x": Comparison(better="lower")}) == ["x was not measured"]


@pytest.mark.parametrize(
    ("better", "champion", "margin", "passes", "fails"),
    [
        ("lower", 1.0, 1.0, 1.099, 1.101),
        ("lower", 1.0, 0.5, 1.049, 1.051),
        ("lower", 1.0, 0.0, 1.0, 1.001),
        ("higher", 1.0, 1.0, 0.901, 0.899),
        # An unbiased estimate of a squared distance may be negative.
        ("lower", -1.0, 1.0, -0.901, -0.899),
        ("higher", 0.0, 0.0, 0.0, -1e-9),
    ],
)
def test_not_worse_allows_the_margin_of_what_could_be_chance(better, champion, margin, passes, fails):
    comparison = {"x": Comparison(better=better, margin=margin)}
    # The champion's replicates do not vary, so the difference varies as the candidate's.
    bar = {"x": of(champion, np.zeros(GROUPS))}
    assert lost_comparisons({"x": of(passes)}, bar, comparison) == []
    assert len(lost_comparisons({"x": of(fails)}, bar, comparison)) == 1


def test_what_both_have_in_common_is_no_chance():
    """The control of pairing: the same difference, of errors that go together and of others."""
    comparison = {"x": Comparison(better="lower")}
    assert lost_comparisons({"x": of(1.05)}, {"x": of(1.0)}, comparison)
    assert not lost_comparisons({"x": of(1.05)}, {"x": of(1.0, -DEVIATIONS)}, comparison)


def test_a_lost_comparison_says_by_how_much():
    (reason,) = lost_comparisons(
        {"x": of(1.2)}, {"x": of(1.0, np.zeros(GROUPS))}, {"x": Comparison(better="lower", margin=0.5)}
    )
    assert reason == "x is 1.2, 0.2 worse than the champion's 1, where 0.05 could be chance"


def decision(version, champion, **changes):
    grounds = {"wanted_samples": 100, "gate": PromoteSettings(), "evaluation": evaluation(x=1.0)}
    return Decision.on(Grounds(version=version, champion=champion, **(grounds | changes)))


def test_a_decision_says_what_becomes_of_the_champion():
    assert decision(2, 2).outcome == "unchanged"
    assert decision(2, 1).sentence == "version 2 is the champion now, and it was version 1"
    assert decision(1, None).sentence == "version 1 is the champion now, and there was none"
    lenient = PromoteSettings(
        limits={"x": Limit(at_most=2.0, at_least=0.25)}, champion={"x": Comparison(better="lower")}
    )
    assert decision(2, 1, gate=lenient, champion_evaluation=evaluation(x=1.5)).sentence == (
        "version 2 is the champion now, and it was version 1: x is 1 (at most 2, at least 0.25, the champion's was 1.5)"
    )
    assert decision(1, None, gate=lenient).sentence.endswith("there was none: x is 1 (at most 2, at least 0.25)")
    gate = PromoteSettings(limits={"x": Limit(at_most=0.5), "y": Limit(at_most=0.5)})
    refused = decision(2, 1, gate=gate)
    assert (refused.outcome, len(refused.reasons)) == ("refused", 2)
    assert refused.sentence == f"version 2 is refused and version 1 stays the champion: {'; '.join(refused.reasons)}"
    assert decision(1, None, gate=gate).sentence.startswith("version 1 is refused and there is no champion: x is 1, ")


def test_fewer_samples_than_were_asked_for_are_refused():
    (reason,) = decision(1, None, wanted_samples=101).reasons
    assert reason == "it was measured of 100 samples, where sample.count is 101"


def test_a_rejected_version_is_refused_whatever_its_figures():
    assert decision(2, 1, rejected="it was rejected").reasons == ["it was rejected"]


def test_a_decision_follows_from_its_own_json():
    gate = PromoteSettings(champion={"x": Comparison(better="lower")})
    made = decision(2, 1, gate=gate, champion_evaluation=evaluation(x=0.5))
    read = Decision.model_validate_json(made.model_dump_json())
    assert read == made == Decision.on(read.grounds)
    assert made.outcome == "refused"
