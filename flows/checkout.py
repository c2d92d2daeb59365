"""Locks a run's checkout, restores its params.yaml, and checks overrides."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from diffusion_core.documents import read_yaml
from diffusion_core.files import Locked, disk_refusal, exclusive_lock
from flows.failure import StageFailed

LOCK = Path(".cache/pipeline.lock")
PARAMS = Path("params.yaml")


@contextmanager
def only_run(seconds: float = 0.0) -> Iterator[None]:
    """Lock this folder against other runs during the block.

    Args:
        seconds: how long to wait for another run.

    Raises:
        StageFailed: another run has the lock all that time, or the folder is read-only.
    """
    with ExitStack() as held:
        _hold(held, seconds)
        yield


def _hold(held: ExitStack, seconds: float) -> None:
    try:
        held.enter_context(exclusive_lock(LOCK, seconds=seconds))
    except OSError as error:
        if (refusal := disk_refusal(error)) is None:
            raise
        raise StageFailed(str(refusal), is_mistake=True) from None
    except Locked:
        raise StageFailed(
            f"another run works in {Path.cwd()}: wait until it ends, or give each worker a checkout of its own",
            is_mistake=True,
        ) from None


@contextmanager
def params_kept() -> Iterator[None]:
    """Restore params.yaml at the end of the block, because overrides are for one run."""
    before = PARAMS.read_bytes() if PARAMS.exists() else None
    try:
        yield
    finally:
        if before is not None and PARAMS.read_bytes() != before:
            PARAMS.write_bytes(before)


# A key of params.yaml and its value, as for `dvc exp run --set-param`; it cannot be an option.
Override = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*=.+$", examples=["train.seed=1"])]

# What to do with the dvc.lock of a run in a temporary checkout: nothing, add it to the run's page, or push it to the
# branch `runs/<name of the run>`.
LockPolicy = Literal["none", "artifact", "branch"]


def check_overrides(overrides: Sequence[Override], file: Path = Path("params.yaml")) -> None:
    """Check that params.yaml has each key, before DVC does.

    Raises:
        StageFailed: a key is missing, or the file is not YAML.
    """
    try:
        content: Any = read_yaml(file) if overrides else {}
    except ValueError as error:
        raise StageFailed(f"overrides: {file} is not valid YAML: {error}", is_mistake=True) from None
    for override in overrides:
        key, _, _ = override.partition("=")
        value = content
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                raise StageFailed(f"overrides: {file} has no key {key}: correct its spelling", is_mistake=True)
            value = value[part]
