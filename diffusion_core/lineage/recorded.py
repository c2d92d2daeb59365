"""What the tracking store keeps of a model's origin: files of its run below `lineage/`, and tags.

`train` records the machine and the changes of its checkout, `publish` the rest. dvc.lock has the parameters with which
each stage ran. So it is right where params.yaml has changed since.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from diffusion_core.documents import parse_yaml
from diffusion_core.lineage.provenance import LockedStage

# Files of the run.
FOLDER = "lineage"
PARAMS, LOCK, DATA, CHANGES = (f"{FOLDER}/{name}" for name in ("params.yaml", "dvc.lock", "data.json", "changes.diff"))

# Tags of the run: the machine, by what they are called on a page.
MACHINE = {
    "processor": "processor",
    "device": "device",
    "processes": "processes",
    "threads": "threads",
    "precision": "precision",
    "compiled": "compiled",
    "torch": "PyTorch",
}
# Why the changes are not among the files.
UNRECORDED = "git_changes_unrecorded"
# Of the version: the model that the training began from, and the sha256 of its files.
PARENT, PARENT_DIGEST = "parent", "parent_digest"


class Lock(BaseModel):
    """The content of a dvc.lock.

    Attributes:
        stages: the stages by name.
    """

    stages: dict[str, LockedStage]

    @classmethod
    def parse(cls, text: str) -> "Lock":
        """Read the text of the file.

        Raises:
            ValueError: it is not a dvc.lock.
        """
        return cls.model_validate(parse_yaml(text))

    @property
    def params(self) -> dict[str, Any]:
        """The parameters with which the stages ran, as dvc.yaml names them: a section, or a dotted name."""
        sections = [stage.params.get("params.yaml", {}) for stage in self.stages.values()]
        return {name: value for each in sections for name, value in each.items()}


def all_params(params: str | None, lock: Lock | None) -> dict[str, Any]:
    """Return the sections of params.yaml that made a model.

    Args:
        params: the text of params.yaml when the model was published, or None.
        lock: its dvc.lock, or None.

    Raises:
        ValueError: the text is not YAML with sections.
    """
    sections = {} if params is None else parse_yaml(params)
    for name, value in ({} if lock is None else lock.params).items():
        *path, last = name.split(".")
        place = sections
        for each in path:
            place = place.setdefault(each, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise ValueError(f"{name} has no place in params.yaml")
        place[last] = value
    if not isinstance(sections, dict):
        raise ValueError("params.yaml has no sections")
    return sections


def shown(machine: Mapping[str, str]) -> dict[str, str]:
    """Return the tags of a machine as a page has them; those that were not recorded are left out."""
    found = {title: machine[tag] for tag, title in MACHINE.items() if tag in machine}
    first, *changes = found.get("threads", "none").split()
    if changes and all(":" in each for each in changes):
        pairs = (each.split(":") for each in changes)
        found["threads"] = ", ".join([first, *(f"{count} after {steps} steps" for steps, count in pairs)])
    return found
