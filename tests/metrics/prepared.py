"""A prepared folder of real digits, as the stages before make it."""

from contextlib import chdir
from pathlib import Path

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import IngestSettings, PrepareSettings
from diffusion_core.stages import ingest, prepare


def prepare_digits(project: Path) -> None:
    """Make `data/prepared` below `project`."""
    with chdir(project):
        ingest.run(IngestSettings.model_validate({"source": {"kind": "digits"}}), Environment())
        prepare.run(PrepareSettings(image_size=8, color="grayscale", validation_fraction=0.2, duplicate_distance=0.1))
