"""The parameters of the flow as types, which Prefect's pages make a form of."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from ruamel.yaml import YAML

from flows.failure import StageFailed

# A key of params.yaml and its value, as `dvc exp run --set-param` takes it; it can never look like an option.
Override = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*=.+$", examples=["train.seed=1"])]

# Where the dvc.lock of a run goes that was made in a checkout of its own: nowhere, onto the run's page, or as a commit
# to the branch `runs/<name of the run>` of the repository.
LockPolicy = Literal["none", "artifact", "branch"]


def check_overrides(overrides: Sequence[Override], file: Path = Path("params.yaml")) -> None:
    """See that params.yaml has each key; DVC would say so later, and in its own words.

    Raises:
        StageFailed: it has not.
    """
    content: Any = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8")) if overrides else {}
    for override in overrides:
        key, _, _ = override.partition("=")
        value = content
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                raise StageFailed(f"overrides: {file} has no key {key}: correct its spelling", is_mistake=True)
            value = value[part]
