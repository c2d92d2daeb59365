"""Bring the images, as they are, into data/raw."""

from diffusion_core.environment import Environment
from diffusion_core.settings import IngestSettings
from diffusion_core.stages.output import replaced
from diffusion_core.stages.paths import RAW


def run(ingest: IngestSettings, environment: Environment) -> None:
    """Replace `data/raw` by what the source has now.

    Raises:
        UserError: the source cannot be read or has no image; `data/raw` is then as it was.
    """
    with replaced(RAW) as folder:
        count = ingest.source.fetch(folder, before=RAW, environment=environment)
    print(f"ingest: {count} images in {RAW}")
