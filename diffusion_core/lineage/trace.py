"""The trace of a registered version: all that is recorded of where it comes from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Change:
    """What differs from the champion before; "none" where one of the two does not have it."""

    name: str
    before: str
    now: str


@dataclass(frozen=True)
class Trace:
    """Where a version comes from. Values are text to show, and some are addresses.

    Attributes:
        model: the registered model.
        version: number of the version.
        published: when, ISO 8601 in UTC.
        aliases: of the version.
        decision: the gate's sentence, or empty.
        code: commit and changes, by name.
        data: of the images, by name.
        params: of all stages by dotted name.
        metrics: value, interval, floor and ceiling of each metric.
        machine: what it was trained on, by name.
        runs: in MLflow and Prefect, by name.
        parents: the models that it follows or began from, by name.
        before: number of the champion before, which the changes are against, or None.
        data_changes: what differs of the images.
        param_changes: what differs of the parameters.
        missing: a sentence for each part that was not recorded.
        diff: what the checkout had beside its commit, to be read: addresses are without credentials; empty if it had
            nothing.
    """

    model: str
    version: int
    published: str
    aliases: list[str]
    decision: str
    code: dict[str, str]
    data: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, dict[str, float]]
    machine: dict[str, str]
    runs: dict[str, str]
    parents: dict[str, str]
    before: int | None = None
    data_changes: list[Change] = field(default_factory=list)
    param_changes: list[Change] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    diff: str = ""

    @property
    def title(self) -> str:
        """Name, number and aliases."""
        aliases = f" ({', '.join(self.aliases)})" if self.aliases else ""
        return f"{self.model}, version {self.version}{aliases}"

    def tables(self) -> dict[str, dict[str, str]]:
        """Return what is shown as names with values, by title; without empty tables."""
        metrics = {name.replace("_", " "): _interval(values) for name, values in self.metrics.items()}
        tables = {
            "Code": self.code,
            "Images": self.data,
            "Metrics, with half of their 95% interval": metrics,
            "Machine": self.machine,
            "Parents": self.parents,
            "Runs": self.runs,
        }
        return {title: table for title, table in tables.items() if table}

    def changes(self) -> dict[str, list[Change]]:
        """Return what differs from the champion before, by title; without empty lists."""
        found = {"Images": self.data_changes, "Parameters": self.param_changes}
        return {
            f"{title} that differ from version {self.before}": changes for title, changes in found.items() if changes
        }


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[Change]:
    """Return each value that is not the same, sorted by name."""
    names = sorted({*before, *now})
    pairs = [Change(name, before.get(name, "none"), now.get(name, "none")) for name in names]
    return [each for each in pairs if each.before != each.now]


def counted(numbers: Mapping[str, Any]) -> dict[str, str]:
    """Return the counts of metrics/data.json as text; the parts of a count have dotted names."""
    found: dict[str, str] = {}
    for name in ("images", "files", "quarantined", "dropped", "duplicates", "split", "class"):
        value = numbers.get(name)
        if isinstance(value, dict):
            found |= {f"{name}.{part}": f"{each:,}" for part, each in value.items() if each}
        elif isinstance(value, int):
            found[name] = f"{value:,}"
    return found


def _interval(values: Mapping[str, float]) -> str:
    half = (values["high"] - values["low"]) / 2
    return f"{values['value']:.4g} ± {half:.2g} (real images {values['floor']:.4g}, noise {values['ceiling']:.4g})"
