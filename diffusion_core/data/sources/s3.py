"""Images in a bucket of an object store."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator
from tqdm import tqdm

from diffusion_core.address import S3Address, parse_s3
from diffusion_core.choices import Choice
from diffusion_core.config.environment import Environment
from diffusion_core.data.downloads import (
    HASHING_THREADS,
    Entry,
    arrived,
    keep_only,
    link,
    only_download,
    read_index,
    write_index,
)
from diffusion_core.data.formats import image_suffixes
from diffusion_core.errors import UserError
from diffusion_core.files import sha256_of
from diffusion_core.parallel import in_parallel

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

    Only new and replaced objects are fetched. Images of the last fetch, found by its index, are linked, so that DVC has
    their bytes already. Images in `parts`, of an interrupted fetch or another checkout, are linked too.

    Attributes:
        url: `s3://bucket/prefix`.
    """

    url: Annotated[str, AfterValidator(_checked)]
    kind: Literal["s3"] = "s3"

    def fetch(self, folder: Path, *, before: Path, parts: Path, environment: Environment) -> int:
        """Fetch or link the images into `folder`, write the index, and return their number.

        Raises:
            UserError: the store cannot be used, has no image below `url`, or a key is not a valid path.
        """
        # Imported here, because only this source needs boto3.
        from diffusion_core.storage import open_store

        address = parse_s3(self.url)
        store = open_store(environment)
        images = _images(store.objects(address.bucket, address.prefix), address)
        entries = _take_over(images, before, read_index(before, self.url), folder)
        staged = {path: _digest(address.bucket, image) for path, image in images.items()}
        # One folder per address, because `keep_only` removes all other files.
        place = parts / hashlib.sha256(str(address).encode()).hexdigest()[:16]
        with only_download(place):
            here = arrived(place, {staged[path] for path in images.keys() - entries.keys()})
            hashes = {path: here[digest] for path, digest in staged.items() if digest in here}
            missing = {path: image for path, image in images.items() if path not in entries and path not in hashes}
            print(f"ingest: {len(missing)} of {len(images)} images are new", flush=True)
            if missing:
                hashes |= _download(store, address.bucket, missing, {path: place / staged[path] for path in missing})
            for path, sha256 in hashes.items():
                link(place / f"{staged[path]}.{sha256}", folder / path)
                entries[path] = Entry(images[path].etag, images[path].size, sha256)
            keep_only(place, {f"{staged[path]}.{entry.sha256}" for path, entry in entries.items()})
        write_index(folder, self.url, entries)
        return len(images)


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
        print(f"ingest: left out {others} objects that are hidden or no images")
    if not images:
        raise UserError(
            f"ingest.source.url is {address}, where no image lies ({' '.join(sorted(suffixes))}): upload some with"
            f" `python -m diffusion_core upload FOLDER {address}`, or correct the address"
        )
    return images


def _take_over(
    images: Mapping[str, "Object"], before: Path, known: Mapping[str, Entry], folder: Path
) -> dict[str, Entry]:
    """Link the files of `before` that equal the bucket's objects into `folder`, and return their entries."""
    same = [
        path
        for path, image in images.items()
        if path in known and (known[path].etag, known[path].size) == (image.etag, image.size)
    ]
    entries = {}
    whole = in_parallel(lambda path: _is_whole(before / path, known[path]), same, HASHING_THREADS)
    for path, is_whole in zip(same, whole, strict=True):
        if is_whole:
            entries[path] = known[path]
            link(before / path, folder / path)
    return entries


def _download(
    store: "Store", bucket: str, missing: Mapping[str, "Object"], files: Mapping[str, Path]
) -> dict[str, str]:
    """Fetch objects into `files`, add their sha256 as suffix, and return the sha256 by path."""
    from diffusion_core.storage import download_all

    paths = {file: path for path, file in files.items()}
    hashes = {}
    total = sum(image.size for image in missing.values())
    with tqdm(desc="ingest", total=total, unit="B", unit_scale=True, disable=None) as progress:
        wanted = [(image, files[path]) for path, image in missing.items()]
        for image, file, sha256 in download_all(store, bucket, wanted):
            file.rename(file.with_suffix(f".{sha256}"))
            hashes[paths[file]] = sha256
            progress.update(image.size)
    return hashes


def _digest(bucket: str, image: "Object") -> str:
    content = json.dumps([bucket, image.key, image.etag, image.size])
    return hashlib.sha256(content.encode()).hexdigest()


def _is_whole(file: Path, entry: Entry) -> bool:
    return file.is_file() and file.stat().st_size == entry.size and sha256_of(file) == entry.sha256
