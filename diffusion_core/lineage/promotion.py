"""The gate in front of the alias `champion`: absolute limits, and a comparison with the champion of now."""

import math
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict

from diffusion_core.config.settings import Comparison, Limit


class Decision(BaseModel):
    """What the gate said.

    `version` is the candidate, `champion` the version that bore the alias before, `reasons` says of each figure that
    failed by how much, and `sentence` says it all.
    """

    model_config = ConfigDict(frozen=True)

    outcome: Literal["promoted", "refused", "unchanged"]
    version: int
    champion: int | None
    reasons: list[str]
    sentence: str

    @classmethod
    def on(cls, version: int, champion: int | None, reasons: list[str]) -> Self:
        """Decide on a version: any reason speaks against it, and the champion itself stays what it is."""
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
    """Return a sentence for each absolute limit that a figure breaks; what is not finite breaks every limit."""
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
    """Return a sentence for each figure that is worse than the champion's by more than its tolerance.

    The tolerance is a share of the size of the champion's figure, whatever its sign: lower is better up to
    `champion + tolerance |champion|`, higher from `champion - tolerance |champion|`. A champion whose figure is not
    finite sets no bar; a candidate's that is not finite never passes.
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
