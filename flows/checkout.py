"""What a run owes the checkout that it works in: to be there alone, and to leave the parameters as they were."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
