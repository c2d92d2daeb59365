"""Copy or fetch the images, unchanged, to data/raw."""

import shutil

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import IngestSettings
from diffusion_core.files import replaced
from diffusion_core.stages.paths import RAW


def run(ingest: IngestSettings, environment: Environment) -> None:
    """Replace `data/raw` by the current images of the source; after an error it does not change.

    Raises:
        UserError: the source cannot be read or has no image.
    """
    parts = environment.downloads.expanduser() if environment.downloads else RAW.with_name(".raw.parts")
    with replaced(RAW) as folder:
        count = ingest.source.fetch(folder, before=RAW, parts=parts, environment=environment)
    # Removed only after success, so that an error loses no downloads.
    if environment.downloads is None and parts.exists():
        shutil.rmtree(parts)
    print(f"ingest: {count} images in {RAW}")
