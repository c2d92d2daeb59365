"""The gate of the alias `champion`: absolute limits, and a comparison with the current champion.

A decision is a function of what it holds: the metrics of both versions and the gate's settings. So it can be made again
from the registry alone.
"""

import math
from collections.abc import Mapping
from typing import Literal, Self

from diffusion_core.config.settings import Comparison, Limit, PromoteSettings
from diffusion_core.lineage.evaluation import Evaluation
from diffusion_core.lineage.record import Record
from diffusion_core.metrics.estimate import Estimate, difference
from diffusion_core.metrics.figures.metric import COUNTS


class Grounds(Record):
    """What a decision follows from.

    Attributes:
        version: the version of the candidate.
        champion: the version of the champion before the decision, or None.
        wanted_samples: number of samples that `sample` was asked for.
        gate: the section `promote` of params.yaml.
        evaluation: the candidate's metrics.
        champion_evaluation: the champion's, of the same seeds against the same real images; None if not compared.
        rejected: why the candidate may not come back, or None.
    """

    version: int
    champion: int | None
    wanted_samples: int
    gate: PromoteSettings
    evaluation: Evaluation
    champion_evaluation: Evaluation | None = None
    rejected: str | None = None


class Decision(Record):
    """The decision of the gate.

    Attributes:
        outcome: "promoted", "refused", or "unchanged" if the candidate is the champion already.
        reasons: a clause for each metric that failed, with the difference.
        sentence: the decision with its reasons.
        grounds: what it follows from.
    """

    outcome: Literal["promoted", "refused", "unchanged"]
    reasons: list[str]
    sentence: str
    grounds: Grounds

    @classmethod
    def on(cls, grounds: Grounds) -> Self:
        """Return the decision: unchanged if the candidate is the champion already, refused if there is a reason."""
        version, champion = grounds.version, grounds.champion
        outcome: Literal["promoted", "refused", "unchanged"]
        if version == champion:
            return cls(
                outcome="unchanged",
                reasons=[],
                sentence=f"version {version} is the champion already",
                grounds=grounds,
            )
        reasons = _reasons(grounds)
        if reasons:
            stays = "there is no champion" if champion is None else f"version {champion} stays the champion"
            outcome, sentence = "refused", f"version {version} is refused and {stays}: {'; '.join(reasons)}"
        else:
            before = "there was none" if champion is None else f"it was version {champion}"
            why = f": {'; '.join(merits)}" if (merits := _merits(grounds)) else ""
            outcome, sentence = "promoted", f"version {version} is the champion now, and {before}{why}"
        return cls(outcome=outcome, reasons=reasons, sentence=sentence, grounds=grounds)


def _reasons(grounds: Grounds) -> list[str]:
    if grounds.rejected is not None:
        return [grounds.rejected]
    reasons = []
    made = grounds.evaluation.counts[COUNTS[0]]
    if made < grounds.wanted_samples:
        reasons.append(f"it was measured of {made:g} samples, where sample.count is {grounds.wanted_samples}")
    reasons += broken_limits(grounds.evaluation.figures, grounds.gate.limits)
    if grounds.champion_evaluation is not None:
        both = grounds.evaluation.estimates, grounds.champion_evaluation.estimates
        reasons += lost_comparisons(*both, grounds.gate.champion)
    return reasons


def _merits(grounds: Grounds) -> list[str]:
    """Return a clause for each metric that the gate looks at: what it is, beside its limit and the champion's."""
    clauses = []
    for name in dict.fromkeys([*grounds.gate.limits, *grounds.gate.champion]):
        beside = []
        limit, other = grounds.gate.limits.get(name), grounds.champion_evaluation
        if limit is not None and limit.at_most is not None:
            beside.append(f"at most {limit.at_most:.4g}")
        if limit is not None and limit.at_least is not None:
            beside.append(f"at least {limit.at_least:.4g}")
        if name in grounds.gate.champion and other is not None and name in other.estimates:
            beside.append(f"the champion's was {other.estimates[name].value:.4g}")
        figure = f"{name} is {grounds.evaluation.figures[name]:.4g}"
        clauses.append(figure + (f" ({', '.join(beside)})" if beside else ""))
    return clauses


def broken_limits(figures: Mapping[str, float], limits: Mapping[str, Limit]) -> list[str]:
    """Return a clause for each metric outside of its limits; what is not finite, or not measured, always fails."""
    reasons = []
    for name, limit in limits.items():
        figure = figures.get(name)
        if figure is None:
            reasons.append(f"{name} was not measured")
        elif not math.isfinite(figure):
            reasons.append(f"{name} is {figure}, which never passes")
        elif limit.at_most is not None and figure > limit.at_most:
            reasons.append(f"{name} is {figure:.4g}, {figure - limit.at_most:.3g} above {limit.at_most:.4g}, its limit")
        elif limit.at_least is not None and figure < limit.at_least:
            reasons.append(
                f"{name} is {figure:.4g}, {limit.at_least - figure:.3g} below {limit.at_least:.4g}, its limit"
            )
    return reasons


def lost_comparisons(
    candidate: Mapping[str, Estimate], champion: Mapping[str, Estimate], comparisons: Mapping[str, Comparison]
) -> list[str]:
    """Return a clause for each metric that is worse than the champion's by more than chance and the margin allow.

    With d the difference for the worse, and w half of its 95% interval from pairs of the same seeds, it is worse if

        d > margin w

    A metric of the champion that was not measured, or is not finite, compares nothing. One of the candidate always
    fails.
    """
    reasons = []
    for name, comparison in comparisons.items():
        own, other = candidate.get(name), champion.get(name)
        if own is None:
            reasons.append(f"{name} was not measured")
        elif not math.isfinite(own.value):
            reasons.append(f"{name} is {own.value}, which never passes")
        elif other is not None and math.isfinite(other.value):
            more, width = difference(own, other)
            worse = more if comparison.better == "lower" else -more
            allowed = comparison.margin * width
            if worse > allowed:
                reasons.append(
                    f"{name} is {own.value:.4g}, {worse:.3g} worse than the champion's {other.value:.4g},"
                    f" where {allowed:.3g} could be chance"
                )
    return reasons
