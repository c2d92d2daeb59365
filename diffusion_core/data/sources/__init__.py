"""Sources of images, one per file, selected by `ingest.source.kind`.

To add a source, add a file here and list its class in `SourceChoice`.
"""

from pathlib import Path
from typing import Protocol

from diffusion_core.config.environment import Environment
from diffusion_core.data.sources.digits import Digits
from diffusion_core.data.sources.folder import Folder
from diffusion_core.data.sources.s3 import S3

SourceChoice = Digits | Folder | S3


class Source(Protocol):
    """Copies the bytes of images into a folder."""

    def fetch(self, folder: Path, *, before: Path, parts: Path, environment: Environment) -> int:
        """Write the images below `folder` and return their number.

        Equal sources give equal files. A direct sub-folder of `folder` is a class; hidden files are for the source.

        Args:
            folder: an empty folder in a folder of the pipeline.
            before: the result of the last fetch, if it exists; not changed.
            parts: a persistent folder for complete downloads; a source that needs it creates it.
            environment: credentials and endpoints. A source that needs none of these takes `**_`.

        Raises:
            UserError: the source cannot be read or has no image; the message names the key of `ingest.source`.
        """
        ...
