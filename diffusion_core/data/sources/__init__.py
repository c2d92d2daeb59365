"""Sources of images, one per file, selected by `ingest.source.kind`.

To add a source, add a file here and list its class in `SourceChoice`.
"""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Protocol

from diffusion_core.config.environment import Environment
from diffusion_core.data.sources.digits import Digits
from diffusion_core.data.sources.folder import Folder
from diffusion_core.data.sources.item import Item
from diffusion_core.data.sources.s3 import S3
from diffusion_core.data.sources.zip import Zip

SourceChoice = Digits | Folder | S3 | Zip


class Source(Protocol):
    """Lists images and returns their bytes."""

    def items(self, environment: Environment) -> Sequence[Item]:
        """Return the images by path; not empty.

        Args:
            environment: credentials and endpoints.

        Raises:
            UserError: the source cannot be read or has no image; the message names the key of `ingest.source`.
        """
        ...

    def contents(
        self, wanted: Sequence[Item], items: Sequence[Item], downloads: Path, environment: Environment
    ) -> Generator[bytes, None, None]:
        """Yield the bytes of each of `wanted`, in order.

        Args:
            wanted: some of the images.
            items: all images, by which a source knows what it may forget.
            downloads: a folder that persists after an error; a source that needs it creates it.
            environment: credentials and endpoints.

        Raises:
            UserError: the source cannot be read, or changed meanwhile.
        """
        ...
