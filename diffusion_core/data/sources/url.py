"""Images in a file on a web server."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator

from diffusion_core.address import without_userinfo
from diffusion_core.choices import Choice
from diffusion_core.config.environment import Environment
from diffusion_core.data.sources.archive import Archive
from diffusion_core.data.sources.arrays import ArraysImages
from diffusion_core.data.sources.item import Item
from diffusion_core.data.sources.parquet import ParquetImages
from diffusion_core.data.sources.published import Images
from diffusion_core.data.sources.tar import TarImages
from diffusion_core.data.sources.web import WebFile, check_address, check_sha256
from diffusion_core.data.sources.webdataset import WebDatasetImages
from diffusion_core.data.sources.zip import ZipImages
from diffusion_core.errors import UserError

SUFFIXES = {
    ".zip": "zip",
    **dict.fromkeys((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz"), "tar"),
    ".parquet": "parquet",
    **dict.fromkeys((".npz", ".npy"), "arrays"),
}


@dataclass(frozen=True)
class Url(Choice):
    """The images in a file on a web server, which is fetched once and read as a file on the disk would be.

    It lies in the folder `DIFFUSION_DOWNLOADS`, else in `.cache/downloads`. An interrupted fetch is resumed.

    Attributes:
        url: `https://` and the rest of the address; `http://` for this machine alone.
        sha256: of the file, which shows that it is the one that was meant.
        format: how the file is read, as the `kind` of the same name; null: by the suffix of the address.
    """

    url: Annotated[str, AfterValidator(check_address)]
    sha256: Annotated[str, AfterValidator(check_sha256)]
    format: Literal["zip", "tar", "webdataset", "parquet", "arrays"] | None = None
    kind: Literal["url"] = "url"

    def items(self, environment: Environment) -> list[Item]:
        """Return the images, after the file was fetched if it was not there.

        Raises:
            UserError: the server has no such file, it has another sha256, or it is refused as one on the disk would be.
        """
        return self._images(environment).items()

    def contents(
        self, wanted: Sequence[Item], _items: Sequence[Item], _downloads: Path, environment: Environment
    ) -> Generator[bytes, None, None]:
        """Yield the bytes of each.

        Raises:
            UserError: the file is damaged.
        """
        return self._images(environment).contents(wanted)

    def _images(self, environment: Environment) -> Images:
        name = PurePosixPath(unquote(urlsplit(self.url).path)).name.lower()
        form: str | None = self.format or next(
            (each for suffix, each in SUFFIXES.items() if name.endswith(suffix)), None
        )
        key = f"ingest.source.url is {without_userinfo(self.url)}"
        if form is None:
            raise UserError(
                f"{key}, whose end is not one of {' '.join(SUFFIXES)}: say by ingest.source.format how to read it"
            )
        sha256 = self.sha256.lower()
        correct = "correct ingest.source.sha256 if you trust this file, else the address"
        file = WebFile(key, self.url, sha256, correct).fetched(environment)
        archive = Archive(key, file, file.stem, sha256)
        if form == "zip":
            return ZipImages(archive)
        if form == "tar":
            return TarImages(archive)
        if form == "webdataset":
            return WebDatasetImages([archive])
        return ParquetImages([archive]) if form == "parquet" else ArraysImages(archive)
