"""Uploads of files: after success the object is complete; after an error it is missing or unchanged."""

import hashlib
import mimetypes
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from diffusion_core.errors import UserError
from diffusion_core.parallel import in_parallel
from diffusion_core.storage.client import PARALLEL, STREAMS, Object, Store
from diffusion_core.storage.hashes import content_md5, hashes, stated_sha256

# Bytes; larger files are uploaded in parts.
PART = 8 * 2**20
MOST_PARTS = 10_000


def upload(store: Store, bucket: str, file: Path, key: str, listed: Object | None = None) -> bool:
    """Upload a file as `upload_open` does."""
    with file.open("rb") as stream:
        return upload_open(store, bucket, stream, key, listed)


def upload_open(store: Store, bucket: str, file: BufferedReader, key: str, listed: Object | None = None) -> bool:
    """Upload an open file with its sha256 as metadata, and check the object. Its path may be gone.

    Nothing is sent if the object exists already with the same size and hash.

    Args:
        store: the store.
        bucket: the bucket.
        file: the file to upload, opened for reading.
        key: the key of the object.
        listed: the object with this key in the bucket's listing, or None.

    Returns:
        Whether the file was sent.

    Raises:
        UserError: the store cannot be used, the file changed during the upload, or the object differs from it.
    """
    with store.translate_errors(bucket, key):
        size = os.fstat(file.fileno()).st_size
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if listed is not None and listed.size == size and _holds(store, bucket, key, file, size, sha256):
            return False
        kind = mimetypes.guess_type(Path(file.name).name)[0] or "application/octet-stream"
        about = {"Bucket": bucket, "Key": key, "ContentType": kind, "Metadata": {"sha256": sha256}}
        if size <= PART:
            body = os.pread(file.fileno(), size, 0)
            _check_unchanged(file, hashlib.sha256(body).hexdigest() == sha256)
            store.client.put_object(**about, Body=body, ContentMD5=content_md5(body))
        else:
            _upload_parts(store, about, file, size)
        if not _holds(store, bucket, key, file, size, sha256):
            raise UserError(
                f"the store {store.name} does not have s3://{bucket}/{key} as it was sent: send it again, or look"
                " after the store before DIFFUSION_S3_ENDPOINT"
            )
    return True


def upload_all(store: Store, bucket: str, files: Sequence[tuple[Path, str, Object | None]]) -> Iterator[bool]:
    """Upload files concurrently; yield in order whether each was sent. The first error ends it."""
    large = {file for file, _, _ in files if file.stat().st_size > PART}
    small = [each for each in files if each[0] not in large]
    sent = in_parallel(lambda each: upload(store, bucket, *each), small, PARALLEL)
    with closing(sent):
        for each in files:
            yield upload(store, bucket, *each) if each[0] in large else next(sent)


def _upload_parts(store: Store, about: Mapping[str, Any], file: BufferedReader, size: int) -> None:
    """Upload a large file in parts; after an error the bucket does not change."""
    place = {"Bucket": about["Bucket"], "Key": about["Key"]}
    length = max(PART, -(-size // MOST_PARTS))
    before = os.fstat(file.fileno())
    place["UploadId"] = store.client.create_multipart_upload(**about)["UploadId"]

    def send(number: int) -> dict[str, Any]:
        body = os.pread(file.fileno(), length, (number - 1) * length)
        answer = store.client.upload_part(**place, PartNumber=number, Body=body, ContentMD5=content_md5(body))
        return {"PartNumber": number, "ETag": answer["ETag"]}

    try:
        parts = list(in_parallel(send, range(1, -(-size // length) + 1), STREAMS))
        _check_unchanged(file, os.fstat(file.fileno()).st_mtime_ns == before.st_mtime_ns)
        store.client.complete_multipart_upload(**place, MultipartUpload={"Parts": parts})
    except BaseException:
        with suppress(BotoCoreError, ClientError):
            store.client.abort_multipart_upload(**place)
        raise


def _holds(store: Store, bucket: str, key: str, file: BufferedReader, size: int, sha256: str) -> bool:
    """Return whether the object has the file's bytes."""
    answer = store.client.head_object(Bucket=bucket, Key=key)
    if answer["ContentLength"] != size:
        return False
    stated, etag = stated_sha256(answer), answer["ETag"].strip('"')
    if stated is None and "md5" in hashes(etag, answer):
        # Uploaded by another program, or the store has lost the metadata, as rclone does at a restart.
        file.seek(0)
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
        return digest.hexdigest() == str(etag)
    return stated == sha256


def _check_unchanged(file: BufferedReader, same: bool) -> None:
    if not same:
        raise UserError(f"{file.name} was changed while it was uploaded: run this again")
