"""Images in a bucket of an object store."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator
from tqdm import tqdm

from diffusion_core.address import S3Address, parse_s3
from diffusion_core.data.bucket_index import Entry, read_index, write_index
from diffusion_core.data.formats import image_suffixes
from diffusion_core.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.kinds import Kind
from diffusion_core.threads import in_parallel

if TYPE_CHECKING:
    from diffusion_core.storage import Object, Store

# Bytes that a name may have on Linux.
LONGEST_NAME = 255
HASHING_THREADS = 4


def _checked(url: str) -> str:
    parse_s3(url)
    return url


@dataclass(frozen=True)
class S3(Kind):
    """Fetches the image objects below `url` (`s3://bucket/prefix`); their keys below it are their paths.

    Only what is new or was replaced is fetched. What was fetched last is known by the index that lies with it, and is
    linked: the bytes are those that DVC has already. An interrupted fetch goes on where it was: what has arrived waits
    in a folder beside data/raw.
    """

    url: Annotated[str, AfterValidator(_checked)]
    kind: Literal["s3"] = "s3"

    def fetch(self, folder: Path, *, before: Path, environment: Environment) -> int:
        """Bring the images into `folder`, with the index, and return how many there are.

        Raises:
            UserError: the store cannot be used, or has no image below `url`, or a key is no path.
        """
        # Only this source should pay for the import of boto3.
        from diffusion_core.storage import open_store

        address = parse_s3(self.url)
        store = open_store(environment)
        images = _images(store.objects(address.bucket, address.prefix), address)
        entries = _take_over(images, before, read_index(before, self.url), folder)
        missing = {path: image for path, image in images.items() if path not in entries}
        print(f"ingest: {len(missing)} of {len(images)} images are new", flush=True)
        if missing:
            entries |= _download(store, address, missing, before.with_name(f".{before.name}.parts"), folder)
        write_index(folder, self.url, entries)
        return len(images)


def _images(objects: Iterable["Object"], address: S3Address) -> dict[str, "Object"]:
    """Return the objects that are images by their paths below the address."""
    suffixes = image_suffixes()
    images, others = {}, 0
    for each in objects:
        path = each.key.removeprefix(address.prefix)
        name = PurePosixPath(path)
        if path.endswith("/"):  # what consoles make of an empty folder
            continue
        if name.suffix.lower() not in suffixes or any(part[0] == "." and part != ".." for part in name.parts):
            others += 1
        else:
            images[path] = each
    folders = {str(folder) for path in images for folder in PurePosixPath(path).parents}
    for path in images:
        parts = path.split("/")
        if {"", ".", ".."} & set(parts) or "\0" in path or max(len(part.encode()) for part in parts) > LONGEST_NAME:
            raise UserError(f"ingest.source.url: the key {path!r} in {address} is no path of a file: rename the object")
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
    """Bring into `folder` what lies in `before` as the bucket has it, and return its entries."""
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
            copy = folder / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                # DVC may have put a link to its cache there.
                os.link((before / path).resolve(), copy)
            except OSError:
                shutil.copyfile(before / path, copy)
    return entries


def _download(
    store: "Store", address: S3Address, missing: Mapping[str, "Object"], parts: Path, folder: Path
) -> dict[str, Entry]:
    """Fetch objects by way of `parts`, where what arrives outlives this process, and return their entries.

    A file there is called by a digest of the object and, when it has all arrived, by its own sha256.
    """
    from diffusion_core.storage import download_all

    parts.mkdir(exist_ok=True)
    staged = {image.key: parts / _digest(address.bucket, image) for image in missing.values()}
    names = {image.key: image for image in missing.values()}
    arrived = _arrived(parts)
    hashes = {key: arrived[file.name] for key, file in staged.items() if file.name in arrived}
    wanted = [(image, staged[key]) for key, image in names.items() if key not in hashes]
    total = sum(image.size for image in names.values())
    with tqdm(desc="ingest", total=total, unit="B", unit_scale=True, disable=None) as progress:
        progress.update(sum(names[key].size for key in hashes))
        for image, file, sha256 in download_all(store, address.bucket, wanted):
            file.rename(file.with_suffix(f".{sha256}"))
            hashes[image.key] = sha256
            progress.update(image.size)
    for path, image in missing.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        staged[image.key].with_suffix(f".{hashes[image.key]}").rename(folder / path)
    shutil.rmtree(parts)
    return {path: Entry(image.etag, image.size, hashes[image.key]) for path, image in missing.items()}


def _digest(bucket: str, image: "Object") -> str:
    content = json.dumps([bucket, image.key, image.etag, image.size])
    return hashlib.sha256(content.encode()).hexdigest()


def _arrived(parts: Path) -> dict[str, str]:
    """Return the sha256 of each file in `parts` that has arrived and is still whole, by the digest of its object."""
    files = [file for file in parts.iterdir() if file.suffix and not file.name.startswith(".")]
    whole = in_parallel(lambda file: _sha256(file) == file.suffix[1:], files, HASHING_THREADS)
    return {file.stem: file.suffix[1:] for file, is_whole in zip(files, whole, strict=True) if is_whole}


def _is_whole(file: Path, entry: Entry) -> bool:
    return file.is_file() and file.stat().st_size == entry.size and _sha256(file) == entry.sha256


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
