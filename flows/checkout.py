"""What a run owes the checkout that it works in: to be there alone, and to leave the parameters as they were."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from ruamel.yaml import YAML

from diffusion_core.files import Locked, exclusive_lock
from flows.failure import StageFailed

LOCK = Path(".cache/pipeline.lock")
PARAMS = Path("params.yaml")


@contextmanager
def only_run() -> Iterator[None]:
    """Keep other runs out of this folder for the block.

    Raises:
        StageFailed: another run works here.
    """
    try:
        with exclusive_lock(LOCK):
            yield
    except Locked:
        raise StageFailed(
            f"another run works in {Path.cwd()}: wait until it ends, or give each worker a checkout of its own",
            is_mistake=True,
        ) from None


@contextmanager
def params_kept() -> Iterator[None]:
    """Put params.yaml back as it was when the block ends: overrides are of one run."""
    before = PARAMS.read_bytes() if PARAMS.exists() else None
    try:
        yield
    finally:
        if before is not None and PARAMS.read_bytes() != before:
            PARAMS.write_bytes(before)


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
