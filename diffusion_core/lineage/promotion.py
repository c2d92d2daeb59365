"""The gate of the alias `champion`: absolute limits, and a comparison with the current champion."""

import math
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict

from diffusion_core.config.settings import Comparison, Limit


class Decision(BaseModel):
    """The decision of the gate.

    Attributes:
        outcome: "promoted", "refused", or "unchanged" if the candidate is the champion already.
        version: the version of the candidate.
        champion: the version of the champion before the decision, or None.
        reasons: a clause for each metric that failed, with the difference.
        sentence: the decision with its reasons.
    """

    model_config = ConfigDict(frozen=True)

    outcome: Literal["promoted", "refused", "unchanged"]
    version: int
    champion: int | None
    reasons: list[str]
    sentence: str

    @classmethod
    def on(cls, version: int, champion: int | None, reasons: list[str]) -> Self:
        """Return the decision on a version: refused if there is a reason, unchanged if it is the champion."""
        outcome: Literal["promoted", "refused", "unchanged"]
        if version == champion:
            outcome, sentence = "unchanged", f"version {version} is the champion already"
        elif reasons:
            stays = "there is no champion" if champion is None else f"version {champion} stays the champion"
            outcome, sentence = "refused", f"version {version} is refused and {stays}: {'; '.join(reasons)}"
        else:
            before = "there was none" if champion is None else f"version {champion} was it"
            outcome, sentence = "promoted", f"version {version} is the champion now; {before} before"
        return cls(outcome=outcome, version=version, champion=champion, reasons=reasons, sentence=sentence)


def broken_limits(figures: Mapping[str, float], limits: Mapping[str, Limit]) -> list[str]:
    """Return a clause for each absolute limit that a metric exceeds; a metric that is not finite fails every limit."""
    reasons = []
    for name, limit in limits.items():
        figure = figures[name]
        if limit.at_most is not None:
            reasons += _above(name, figure, limit.at_most, "its limit")
        if limit.at_least is not None:
            reasons += _below(name, figure, limit.at_least, "its limit")
    return reasons


def lost_comparisons(
    figures: Mapping[str, float], champion: Mapping[str, float], comparisons: Mapping[str, Comparison]
) -> list[str]:
    """Return a clause for each metric that is worse than the champion's by more than its tolerance.

    If lower is better, the metric must be at most `champion + tolerance |champion|`; if higher is better, at least
    `champion - tolerance |champion|`. A metric of the champion that is not finite sets no limit. A metric of the
    candidate that is not finite always fails.
    """
    reasons = []
    for name, comparison in comparisons.items():
        figure, bar = figures[name], champion[name]
        room = comparison.tolerance * abs(bar)
        origin = f"what the champion's {bar:.6g} allows"
        if comparison.better == "lower":
            reasons += _above(name, figure, bar + room if math.isfinite(bar) else math.inf, origin)
        else:
            reasons += _below(name, figure, bar - room if math.isfinite(bar) else -math.inf, origin)
    return reasons


def _above(name: str, figure: float, most: float, origin: str) -> list[str]:
    if not math.isfinite(figure):
        return [f"{name} is {figure}, which never passes"]
    return [f"{name} is {figure:.6g}, {figure - most:.3g} above {most:.6g}, {origin}"] if figure > most else []


def _below(name: str, figure: float, least: float, origin: str) -> list[str]:
    if not math.isfinite(figure):
        return [f"{name} is {figure}, which never passes"]
    return [f"{name} is {figure:.6g}, {least - figure:.3g} below {least:.6g}, {origin}"] if figure < least else []
