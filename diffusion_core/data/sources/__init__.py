"""Where images come from: one source a file, chosen by `ingest.source.kind`."""

from pathlib import Path
from typing import Protocol


class Source(Protocol):
    """Brings images, byte for byte as they are, into a folder."""

    def fetch(self, folder: Path) -> int:
        """Write the images below `folder` and return how many there are.

        `folder` exists and is empty, and the folder around it is the pipeline's own. A sub-folder directly below
        `folder` is a class. The same source gives the same files with the same bytes.

        Raises:
            UserError: the source cannot be read or has no image; the message names the key of `ingest.source`.
        """
        ...
