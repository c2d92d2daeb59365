"""Locks a run's checkout, restores its params.yaml, and checks overrides."""

import logging
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from diffusion_core.address import without_credentials
from diffusion_core.documents import parse_yaml, read_yaml
from diffusion_core.files import disk_refusal, write_whole
from diffusion_core.locks import Locked, exclusive_lock
from diffusion_core.stages.paths import PARAMS_BEFORE, RUN_LOCK
from flows.failure import StageFailed

PARAMS = Path("params.yaml")
# What a run with overrides had in params.yaml, after it was restored.
OVERRIDDEN = Path(".cache/params.overridden")
# The overrides of that run, one a line.
OVERRIDES = Path(".cache/params.overrides")

_logger = logging.getLogger(__name__)

# A key of params.yaml and its value, as for `dvc exp run --set-param`; it cannot be an option.
Override = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*=.+$", examples=["train.seed=1"])]

# What to do with the dvc.lock of a run in a temporary checkout: nothing, add it to the run's page, or push it to the
# branch `runs/<name of the run>`.
LockPolicy = Literal["none", "artifact", "branch"]


def committer() -> dict[str, str]:
    """Return the variables of a committer's name and address, so far as git knows none.

    git itself then takes the names of user and machine, and `dvc exp run` does not.
    """
    if shutil.which("git") is None:
        # DVC says itself what it lacks.
        return {}
    found: dict[str, str] = {}
    for key, word, ours in (("user.name", "NAME", "diffusion pipeline"), ("user.email", "EMAIL", "pipeline@localhost")):
        configured = subprocess.run(["git", "config", "--get", key], capture_output=True, check=False)
        if configured.returncode:
            names = [f"GIT_{who}_{word}" for who in ("AUTHOR", "COMMITTER")]
            found |= {name: os.environ.get(name, ours) for name in names}
    return found


@contextmanager
def only_run(seconds: float = 0.0) -> Iterator[None]:
    """Lock this folder against other runs during the block, and restore params.yaml after a run that was killed.

    Args:
        seconds: how long to wait for another run.

    Raises:
        StageFailed: another run has the lock all that time, or the folder is read-only.
    """
    with ExitStack() as held:
        with _disk_refusals():
            _hold(held, seconds)
            if PARAMS_BEFORE.exists():
                _restore_unless_edited()
        yield


def _hold(held: ExitStack, seconds: float) -> None:
    try:
        held.enter_context(exclusive_lock(RUN_LOCK, seconds=seconds))
    except Locked as locked:
        raise StageFailed(
            f"another run works in {Path.cwd()}{locked.holder}: wait until it ends, or give each worker a"
            " checkout of its own",
            is_mistake=True,
        ) from None


@contextmanager
def params_kept(overrides: Sequence[Override]) -> Iterator[None]:
    """Check the overrides, which are for one run, and restore params.yaml at the end of the block.

    If this process is killed in the block, the next `only_run` restores it.

    Raises:
        StageFailed: params.yaml lacks the key of an override or is not YAML, or the disk refuses it.
    """
    if not overrides:
        yield
        return
    _check(overrides)
    with _disk_refusals():
        write_whole(OVERRIDES, "\n".join(overrides))
        write_whole(PARAMS_BEFORE, PARAMS.read_bytes().decode())
    try:
        yield
    finally:
        with _disk_refusals():
            _restore_params()
        _logger.warning(
            "%s is restored, and dvc.lock and the outputs here are those of the overrides (%s): `git checkout dvc.lock"
            " && dvc checkout` restores what was committed, and the next run what %s says",
            *(PARAMS, without_credentials(", ".join(overrides)), PARAMS),
        )


def _restore_unless_edited() -> None:
    """Restore params.yaml after a run that was killed, unless more than that run's overrides has changed since."""
    try:
        before, now = read_yaml(PARAMS_BEFORE), read_yaml(PARAMS if PARAMS.exists() else PARAMS_BEFORE)
        is_untouched = now in (before, _overridden(before, OVERRIDES.read_text(encoding="utf-8").splitlines()))
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        is_untouched = False
    if is_untouched:
        _restore_params()
        _logger.warning(
            "%s is restored, because a run with overrides was killed; what it had is in %s", PARAMS, OVERRIDDEN
        )
        return
    PARAMS_BEFORE.replace(OVERRIDDEN)
    _logger.warning(
        "%s was edited after a run with overrides was killed, so it stays as it is; what it had before that run is in"
        " %s: compare them with `diff %s %s`",
        *(PARAMS, OVERRIDDEN, PARAMS, OVERRIDDEN),
    )


def _overridden(content: Any, overrides: Sequence[Override]) -> Any:
    """Return what params.yaml has after the overrides are set."""
    content = deepcopy(content)
    for override in overrides:
        key, _, value = override.partition("=")
        *path, last = key.split(".")
        reduce(lambda node, part: node[part], path, content)[last] = parse_yaml(value)
    return content


def _restore_params() -> None:
    """Restore what `PARAMS_BEFORE` has; a kill or a full disk at any moment leaves that to the next run."""
    if PARAMS.exists():
        shutil.copyfile(PARAMS, OVERRIDDEN)
    # A link stays one.
    write_whole(PARAMS.resolve() if PARAMS.is_symlink() else PARAMS, PARAMS_BEFORE.read_bytes().decode())
    PARAMS_BEFORE.unlink()


@contextmanager
def _disk_refusals() -> Iterator[None]:
    """Raise what a disk refuses in the block as a `StageFailed`."""
    try:
        yield
    except OSError as error:
        if (refusal := disk_refusal(error)) is None:
            raise
        raise StageFailed(str(refusal), is_mistake=True) from None


def _check(overrides: Sequence[Override]) -> None:
    """Check that params.yaml has each key, before DVC does."""
    try:
        content: Any = read_yaml(PARAMS)
    except ValueError as error:
        raise StageFailed(f"overrides: {PARAMS} is not valid YAML: {error}", is_mistake=True) from None
    for override in overrides:
        key, _, _ = override.partition("=")
        value = content
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                raise StageFailed(f"overrides: {PARAMS} has no key {key}: correct its spelling", is_mistake=True)
            value = value[part]
