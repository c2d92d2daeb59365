"""Where images come from: one source a file, chosen by `ingest.source.kind`.

A new source is a new file beside its siblings, listed in `SourceChoice`.
"""

from pathlib import Path
from typing import Protocol

from diffusion_core.config.environment import Environment
from diffusion_core.data.sources.digits import Digits
from diffusion_core.data.sources.folder import Folder
from diffusion_core.data.sources.s3 import S3

SourceChoice = Digits | Folder | S3


class Source(Protocol):
    """Brings images, byte for byte as they are, into a folder."""

    def fetch(self, folder: Path, *, before: Path, parts: Path, environment: Environment) -> int:
        """Write the images below `folder` and return how many there are.

        `folder` exists and is empty, and the folder around it is the pipeline's own. A sub-folder directly below
        `folder` is a class; hidden files are the source's own. The same source gives the same files with the same
        bytes. `before` is what was fetched last, if it is there: it is read and left as it is. `parts`
        is a folder for what has arrived, made by whoever needs it, which outlives this process. A source that needs
        none of these takes `**_`.

        Raises:
            UserError: the source cannot be read or has no image; the message names the key of `ingest.source`.
        """
        ...
