"""How long stages took on this machine, beside the hash of the output that they made."""

import json
import logging
from pathlib import Path

from diffusion_core.documents import read_json
from diffusion_core.files import sha256_of, write_whole

logger = logging.getLogger(__name__)

SECONDS = Path(".cache/seconds")


def record_seconds(stage: str, output: Path, seconds: float) -> None:
    """Record how long a stage took to make a file; warn if the disk refuses, because the output is there."""
    content = json.dumps({"sha256": sha256_of(output), "seconds": seconds}) + "\n"
    try:
        SECONDS.mkdir(parents=True, exist_ok=True)
        write_whole(SECONDS / f"{stage}.json", content)
    except OSError as error:
        logger.warning("the time of %s is not recorded: %s", stage, error)


def seconds_of(stage: str, output: Path) -> float | None:
    """Return how long a stage took to make a file, or None if this machine did not make it."""
    try:
        recorded = read_json(SECONDS / f"{stage}.json")
        return float(recorded["seconds"]) if recorded["sha256"] == sha256_of(output) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None
