"""Bring the images, as they are, into data/raw."""

import shutil

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import IngestSettings
from diffusion_core.files import replaced
from diffusion_core.stages.paths import RAW


def run(ingest: IngestSettings, environment: Environment) -> None:
    """Replace `data/raw` by what the source has now.

    Raises:
        UserError: the source cannot be read or has no image; `data/raw` is then as it was.
    """
    parts = environment.downloads.expanduser() if environment.downloads else RAW.with_name(".raw.parts")
    with replaced(RAW) as folder:
        count = ingest.source.fetch(folder, before=RAW, parts=parts, environment=environment)
    # Only now that they are in place: what was fetched survives any error before.
    if environment.downloads is None and parts.exists():
        shutil.rmtree(parts)
    print(f"ingest: {count} images in {RAW}")
