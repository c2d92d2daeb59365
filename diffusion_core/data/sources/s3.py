"""Images in a bucket of an object store."""

import hashlib
import json
import tempfile
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator

from diffusion_core.address import S3Address, parse_s3
from diffusion_core.choices import Choice
from diffusion_core.config.environment import Environment
from diffusion_core.data.downloads import arrived, keep_only, only_download
from diffusion_core.data.formats import image_suffixes
from diffusion_core.data.sources.archive import check_size
from diffusion_core.data.sources.item import Item
from diffusion_core.data.sources.metadata import labelled, table_names
from diffusion_core.errors import UserError
from diffusion_core.progress import Progress

if TYPE_CHECKING:
    from diffusion_core.storage import Object, Store

# Maximum bytes of a file name on Linux.
LONGEST_NAME = 255


def _checked(url: str) -> str:
    parse_s3(url)
    return url


@dataclass(frozen=True)
class S3(Choice):
    """Fetches the image objects below `url`; their keys relative to it become their paths.

    An object `labels.csv`, `metadata.csv` or `metadata.jsonl` names the classes.

    Only new and replaced objects are fetched, and of those only what no interrupted fetch or other checkout has left in
    the folder of downloads.

    Attributes:
        url: `s3://bucket/prefix`.
    """

    url: Annotated[str, AfterValidator(_checked)]
    kind: Literal["s3"] = "s3"

    def items(self, environment: Environment) -> list[Item]:
        """Return the images; the stamp of each is its ETag.

        Raises:
            UserError: the store cannot be used, has no image below `url`, a key is not a valid path, or an object is
                larger than any image.
        """
        # Imported here, because only this source needs boto3.
        from diffusion_core.storage import open_store

        address = parse_s3(self.url)
        key = f"ingest.source.url is {address}"
        store = open_store(environment)
        objects = store.objects(address.bucket, address.prefix)
        below = {each.key.removeprefix(address.prefix): each for each in objects}
        tables = {path: below[path] for path in table_names(below)}
        images = _images((each for path, each in below.items() if path not in tables), address)
        for path, each in (images | tables).items():
            check_size(key, path, each.size)
        items = [Item(path, image.size, image.etag) for path, image in sorted(images.items())]
        return labelled(items, {path: _content(store, address.bucket, each) for path, each in tables.items()}, key)

    def contents(
        self, wanted: Sequence[Item], items: Sequence[Item], downloads: Path, environment: Environment
    ) -> Generator[bytes, None, None]:
        """Fetch all objects that `downloads` lacks, and yield the bytes of each.

        Raises:
            UserError: the store cannot be used, or an object has changed.
        """
        address = parse_s3(self.url)
        objects = {item.path: _object(address, item) for item in items}
        digests = {path: _digest(address.bucket, each) for path, each in objects.items()}
        # One folder per address, because `keep_only` removes all other files.
        place = downloads / hashlib.sha256(str(address).encode()).hexdigest()[:16]
        with only_download(place):
            here = arrived(place, {digests[item.path] for item in wanted})
            missing = [item.path for item in wanted if digests[item.path] not in here]
            if missing:
                here |= _download(
                    environment, address.bucket, objects, {path: place / digests[path] for path in missing}
                )
            for item in wanted:
                digest = digests[item.path]
                yield (place / f"{digest}.{here[digest]}").read_bytes()
            keep_only(place, {*digests.values()})


def _content(store: "Store", bucket: str, table: "Object") -> bytes:
    from diffusion_core.storage import download

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "table")
        download(store, bucket, table, file)
        return file.read_bytes()


def _images(objects: Iterable["Object"], address: S3Address) -> dict[str, "Object"]:
    """Return the image objects by path below the address.

    Raises:
        UserError: there is no image, or a key is not a valid path.
    """
    suffixes = image_suffixes()
    images, others = {}, 0
    for each in objects:
        path = each.key.removeprefix(address.prefix)
        name = PurePosixPath(path)
        if path.endswith("/"):  # consoles create such an object for an empty folder
            continue
        if name.suffix.lower() not in suffixes or any(part[0] == "." and part != ".." for part in name.parts):
            others += 1
        else:
            images[path] = each
    folders = {str(folder) for path in images for folder in PurePosixPath(path).parents}
    for path in images:
        parts = path.split("/")
        if {"", ".", ".."} & set(parts) or "\0" in path or max(len(part.encode()) for part in parts) > LONGEST_NAME:
            raise UserError(
                f"ingest.source.url: the key {path!r} in {address} is not a path of a file: rename the object"
            )
        if path in folders:
            raise UserError(f"ingest.source.url: {path!r} in {address} is an image and a folder: rename one of them")
    if others:
        print(f"ingest: left out objects that are hidden or no images: {others:,}")
    if not images:
        raise UserError(
            f"ingest.source.url is {address}, where no image lies ({' '.join(sorted(suffixes))}): upload some with"
            f" `python -m diffusion_core upload FOLDER {address}`, or correct the address"
        )
    return images


def _download(
    environment: Environment, bucket: str, objects: Mapping[str, "Object"], files: Mapping[str, Path]
) -> dict[str, str]:
    """Fetch objects into `files`, add their sha256 as suffix, and return the sha256 by the file's first name."""
    from diffusion_core.storage import download_all, open_store

    hashes = {}
    total = sum(objects[path].size for path in files)
    with Progress("fetch", total, "B") as progress:
        wanted = [(objects[path], file) for path, file in files.items()]
        for image, file, sha256 in download_all(open_store(environment), bucket, wanted):
            file.rename(file.with_suffix(f".{sha256}"))
            hashes[file.name] = sha256
            progress.add(image.size)
    return hashes


def _object(address: S3Address, item: Item) -> "Object":
    from diffusion_core.storage import Object

    assert item.size is not None
    assert item.stamp is not None
    return Object(f"{address.prefix}{item.path}", item.size, item.stamp, 0.0)


def _digest(bucket: str, image: "Object") -> str:
    content = json.dumps([bucket, image.key, image.etag, image.size])
    return hashlib.sha256(content.encode()).hexdigest()
