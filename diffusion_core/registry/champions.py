"""The alias `champion` of a registered model: who has it, who had it and why, and how it moves.

Everything is stored in the tags of the versions, so that it is available on every machine.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from diffusion_core.errors import UserError
from diffusion_core.lineage.promotion import Decision
from diffusion_core.registry.versions import (
    CHAMPION,
    CHAMPION_BEFORE,
    DECISION,
    downloaded,
    find_champion,
    find_named,
    versions_named,
)

GATE = "gate"
# The how-manieth champion a version was, the last time. Clocks of machines differ, so it is counted.
GENERATION = "champion_generation"
REJECTED = "rejected"
# A sentence for each event, by its time in UTC; each of the words is in those of its kind alone.
EVENT = "event."
BY_ROLLBACK, IS_REFUSED = "is the champion by a rollback", "is refused"


@dataclass(frozen=True, order=True)
class Event:
    """What happened to a version.

    Attributes:
        time: ISO 8601, in UTC.
        version: number of the version.
        sentence: what happened, and why.
    """

    time: str
    version: int
    sentence: str

    @property
    def outcome(self) -> str:
        """One word: promoted, refused or rollback."""
        if BY_ROLLBACK in self.sentence.partition(";")[0]:
            return "rollback"
        return "refused" if IS_REFUSED in self.sentence.partition(":")[0] else "promoted"


def settle(client: MlflowClient, version: ModelVersion, decision: Decision) -> bool:
    """Write the decision to the version's tags and then, if it is promoted, move the alias to it.

    What says that the version was the champion is written last, and completed by the next call if this one is killed.

    Returns:
        Whether that is done; false if another process has moved the alias since, so that the decision is on an old one.
    """
    champion = decision.grounds.champion
    if decision.outcome == "unchanged":
        if GENERATION not in version.tags and (recorded := recorded_decision(version)) is not None:
            _become(client, version, recorded.sentence)
        return True
    if decision.outcome == "refused":
        # The same refusal each night is one event.
        if recorded_decision(version) != decision:
            now = _now()
            tags = {GATE: decision.outcome, DECISION: decision.model_dump_json(), f"{EVENT}{now}": decision.sentence}
            _tag(client, version, tags)
        return True
    if not _is_champion(client, version.name, champion):
        return False
    tags = {GATE: decision.outcome, DECISION: decision.model_dump_json()}
    _tag(client, version, tags | ({} if champion is None else {CHAMPION_BEFORE: str(champion)}))
    if not _is_champion(client, version.name, champion):
        return False
    client.set_registered_model_alias(version.name, CHAMPION, version.version)
    _become(client, version, decision.sentence)
    return True


def _become(client: MlflowClient, version: ModelVersion, sentence: str) -> None:
    """Write that a version has become the champion, after all that were it before."""
    before = (_generation(each) for each in versions_named(client, version.name))
    _tag(client, version, {f"{EVENT}{_now()}": sentence, GENERATION: str(max(before, default=0) + 1)})


def recorded_decision(version: ModelVersion) -> Decision | None:
    """Return the last decision on a version, or None if there is none that this code can read."""
    try:
        return Decision.model_validate_json(version.tags.get(DECISION, ""))
    except ValueError:
        return None


def rejection(version: ModelVersion, champion: ModelVersion | None) -> str | None:
    """Return why a version may not become the champion again, or None if it may.

    Either `diffusion rollback` has left it, or the alias was moved from it by other means: the present champion became
    one before it did.
    """
    back = f"`diffusion rollback {version.version}` makes it the champion again"
    if (why := version.tags.get(REJECTED)) is not None:
        return f"it was rejected ({why}); {back}"
    is_other = champion is not None and champion.version != version.version
    if champion is not None and is_other and _generation(champion) < _generation(version):
        return f"it was the champion, and the alias was moved from it to version {champion.version}; {back}"
    return None


def roll_back(client: MlflowClient, name: str, number: int | None) -> str:
    """Move the alias to a version, by default to the champion before, and mark the version that it leaves as rejected.

    Returns:
        A sentence that says what was done.

    Raises:
        UserError: there is no champion or no champion before it, the version does not exist or is the champion, or its
            files cannot be read. The alias does not move.
    """
    champion = find_champion(client, name)
    if champion is None:
        raise UserError(f"{name} has no champion: promote a version first, with `diffusion promote`")
    wanted = champion.tags.get(CHAMPION_BEFORE) if number is None else str(number)
    if wanted is None:
        raise UserError(
            f"version {champion.version} of {name} has no champion before it: name a version, as `diffusion history`"
            " lists them"
        )
    target = find_named(client, name, wanted)
    if target.version == champion.version:
        raise UserError(f"version {wanted} of {name} is the champion already: name another version")
    with downloaded(target):
        pass
    if not _is_champion(client, name, int(champion.version)):
        raise UserError(f"another process has moved the alias of {name} meanwhile: see `diffusion history`")
    left = f"the alias was rolled back from it to version {target.version} at {_now()}"
    # First, because a run that promotes it again would undo the rollback.
    _tag(client, champion, {REJECTED: left})
    client.set_registered_model_alias(name, CHAMPION, target.version)
    if REJECTED in target.tags:
        client.delete_model_version_tag(name, target.version, REJECTED)
    sentence = f"version {target.version} {BY_ROLLBACK}; version {champion.version} is rejected"
    _become(client, target, sentence)
    return sentence


def events(client: MlflowClient, name: str) -> list[Event]:
    """Return what happened to all versions of a registered model, the oldest first."""
    return sorted(_events(versions_named(client, name)))


def _events(versions: Iterable[ModelVersion]) -> Iterable[Event]:
    for version in versions:
        for tag, sentence in version.tags.items():
            if tag.startswith(EVENT):
                yield Event(tag.removeprefix(EVENT), int(version.version), sentence)


def _generation(version: ModelVersion) -> int:
    return int(version.tags.get(GENERATION, "0"))


def _tag(client: MlflowClient, version: ModelVersion, tags: dict[str, str]) -> None:
    for tag, value in tags.items():
        client.set_model_version_tag(version.name, version.version, tag, value)


def _now() -> str:
    # With Z, because a tag's name may not have a plus.
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _is_champion(client: MlflowClient, name: str, number: int | None) -> bool:
    """Return whether the alias names this version now, or none where `number` says none."""
    champion = find_champion(client, name)
    return number == (None if champion is None else int(champion.version))
