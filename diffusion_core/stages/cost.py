"""How long stages took. A time belongs to the output that it made, so outputs of other machines have none here."""

import json
from pathlib import Path

from diffusion_core.documents import read_json
from diffusion_core.files import sha256_of, write_whole

SECONDS = Path(".cache/seconds")


def record_seconds(stage: str, output: Path, seconds: float) -> None:
    """Record how long a stage took to make a file."""
    SECONDS.mkdir(parents=True, exist_ok=True)
    write_whole(SECONDS / f"{stage}.json", json.dumps({"sha256": sha256_of(output), "seconds": seconds}) + "\n")


def seconds_of(stage: str, output: Path) -> float | None:
    """Return how long a stage took to make a file, or None if this machine did not make it."""
    try:
        recorded = read_json(SECONDS / f"{stage}.json")
        return float(recorded["seconds"]) if recorded["sha256"] == sha256_of(output) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None
