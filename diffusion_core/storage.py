"""Object stores that speak S3: the only file that knows boto3.

What is transferred is compared with what the store says of it, in both directions: a file under its final name and an
object that was reported as uploaded are whole. Every error is one sentence that names the variable to correct.
"""

import hashlib
import mimetypes
import os
import random
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError
from urllib3.exceptions import HTTPError

from diffusion_core.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.storage_access import credentials, shown_endpoint
from diffusion_core.storage_errors import changed, interruption, refusal
from diffusion_core.storage_hashes import content_md5, hashes, matches, told_sha256
from diffusion_core.threads import as_done, in_parallel

# Requests at a time. Python makes about a thousand small ones a second, however many threads it has.
PARALLEL = 16
# Of one large object; with more, Python's threads wait for each other.
STREAMS = 4
# How often a request is tried, or a body begun, with pauses between that grow to so many seconds.
ATTEMPTS = 5
LONGEST_PAUSE = 20.0
CONNECT_SECONDS = 10
READ_SECONDS = 60
# Bytes. A store that has no hash of an object at hand reads all of it for each range: ranges are few and long.
RANGE = 64 * 2**20
PART = 8 * 2**20
MOST_PARTS = 10_000
CHUNK = 2**18
# A whole object is fetched once more when its hash is wrong.
TRIES_TO_MATCH = 2


@dataclass(frozen=True)
class Object:
    """What a listing says of an object; `size` in bytes, `etag` without quotes."""

    key: str
    size: int
    etag: str


@dataclass(frozen=True)
class Store:
    """A client of one store; `name` is its endpoint as it may be shown.

    All methods raise `UserError` for what the store refuses and for trouble that outlasts the retries.
    """

    client: Any
    name: str

    def check(self, bucket: str) -> None:
        """Find out whether the store answers, takes the credentials and lets them list the bucket."""
        with _telling(self.name, bucket):
            self.client.list_objects_v2(Bucket=bucket, MaxKeys=1)

    def objects(self, bucket: str, prefix: str) -> list[Object]:
        """Return the objects whose keys begin with `prefix`, by one request a thousand."""
        with _telling(self.name, bucket, prefix):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            return [
                Object(each["Key"], each["Size"], each["ETag"].strip('"'))
                for page in pages
                for each in page.get("Contents", ())
            ]

    def download(self, bucket: str, wanted: Object, target: Path) -> str:
        """Fetch the object as it was listed and return its sha256; `target` is then whole, else not there.

        Raises:
            UserError: also where the object was replaced, or its hash is twice another than the store says.
            OSError: the file cannot be written.
        """
        temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
        try:
            with _telling(self.name, bucket, wanted.key):
                for _ in range(TRIES_TO_MATCH):
                    answer, digests = self._fetch(bucket, wanted, temporary)
                    if matches(wanted.etag, answer, digests):
                        temporary.replace(target)
                        return digests["sha256"]
            raise UserError(
                f"s3://{bucket}/{wanted.key} arrives with another hash than the store {self.name} says it has:"
                " upload the object anew, or look after the store or the network before DIFFUSION_S3_ENDPOINT"
            )
        finally:
            temporary.unlink(missing_ok=True)

    def download_all(self, bucket: str, wanted: Sequence[tuple[Object, Path]]) -> Iterator[tuple[Object, Path, str]]:
        """Fetch many objects at a time; yields each with its sha256 as soon as it is there.

        The first error ends it, and what was yielded stays.
        """
        large = [each for each in wanted if each[0].size > RANGE]
        small = [each for each in wanted if each[0].size <= RANGE]
        for each in large:
            yield *each, self.download(bucket, *each)
        with closing(as_done(lambda each: self.download(bucket, *each), small, PARALLEL)) as fetched:
            for each, sha256 in fetched:
                yield *each, sha256

    def upload(self, bucket: str, file: Path, key: str, listed: Object | None = None) -> bool:
        """Put a file into the bucket, with its sha256 beside it, and look whether it arrived.

        Where `listed`, which the bucket has under the key, has that size and that sha256 already, nothing is sent.

        Returns:
            Whether it was sent.
        """
        with _telling(self.name, bucket, key):
            size = file.stat().st_size
            with file.open("rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            if listed is not None and listed.size == size and self._holds(bucket, key, size, sha256):
                return False
            kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
            about = {"Bucket": bucket, "Key": key, "ContentType": kind, "Metadata": {"sha256": sha256}}
            if size <= PART:
                body = file.read_bytes()
                _check_unchanged(file, hashlib.sha256(body).hexdigest() == sha256)
                self.client.put_object(**about, Body=body, ContentMD5=content_md5(body))
            else:
                self._upload_parts(about, file, size)
            if not self._holds(bucket, key, size, sha256):
                raise UserError(
                    f"the store {self.name} does not have s3://{bucket}/{key} as it was sent: send it again, or look"
                    " after the store before DIFFUSION_S3_ENDPOINT"
                )
        return True

    def upload_all(self, bucket: str, files: Sequence[tuple[Path, str, Object | None]]) -> Iterator[bool]:
        """Upload many files at a time; yields in their order whether each was sent. The first error ends it."""
        large = {file for file, _, _ in files if file.stat().st_size > PART}
        small = [each for each in files if each[0] not in large]
        sent = in_parallel(lambda each: self.upload(bucket, *each), small, PARALLEL)
        with closing(sent):
            for each in files:
                yield self.upload(bucket, *each) if each[0] in large else next(sent)

    def _fetch(self, bucket: str, wanted: Object, file: Path) -> tuple[Mapping[str, Any], dict[str, str]]:
        """Write the object to `file`; return the answer that its first bytes came with, and the hashes of `file`."""
        with file.open("wb") as stream:
            stream.truncate(wanted.size)
        spans = [(start, min(start + RANGE, wanted.size)) for start in range(0, wanted.size, RANGE)] or [(0, 0)]
        answers = in_parallel(lambda span: self._fetch_span(bucket, wanted, file, *span), spans, STREAMS)
        with closing(answers):
            first = next(answers)
            digests = {name: hashlib.new(name, usedforsecurity=False) for name in hashes(wanted.etag, first)}
            threads = len(digests) if len(spans) > 1 else 1
            for span, _ in zip(spans, chain([first], answers), strict=True):
                # What has arrived is hashed while the rest is on its way.
                update = partial(_update, file=file, start=span[0], stop=span[1])
                deque(in_parallel(update, [*digests.values()], threads), maxlen=0)
        return first, {name: digest.hexdigest() for name, digest in digests.items()}

    def _fetch_span(self, bucket: str, wanted: Object, file: Path, start: int, stop: int) -> Mapping[str, Any]:
        """Write bytes `start` to `stop` of the object into `file`, going on after each interruption."""
        place = {"Bucket": bucket, "Key": wanted.key, "IfMatch": f'"{wanted.etag}"'}
        with file.open("r+b") as stream:
            stream.seek(start)
            for attempt in range(1, ATTEMPTS + 1):
                position = stream.tell()
                whole = (position, stop) == (0, wanted.size)
                answer = self.client.get_object(**place, **({} if whole else {"Range": f"bytes={position}-{stop - 1}"}))
                with closing(answer["Body"]) as body:
                    # Not every store heeds If-Match.
                    if answer["ETag"].strip('"') != wanted.etag or answer["ContentLength"] != stop - position:
                        raise UserError(changed(f"s3://{bucket}/{wanted.key}"))
                    try:
                        for chunk in body.iter_chunks(CHUNK):
                            stream.write(chunk)
                    except (HTTPClientError, IncompleteReadError, HTTPError):
                        if attempt == ATTEMPTS:
                            raise
                if stream.tell() == stop:
                    break
                time.sleep(random.uniform(0.0, min(2.0 ** (attempt - 1), LONGEST_PAUSE)))
        return answer  # type: ignore[no-any-return]

    def _upload_parts(self, about: Mapping[str, Any], file: Path, size: int) -> None:
        """Send a large file in parts, or leave what the bucket had."""
        place = {"Bucket": about["Bucket"], "Key": about["Key"]}
        length = max(PART, -(-size // MOST_PARTS))
        before = file.stat()
        place["UploadId"] = self.client.create_multipart_upload(**about)["UploadId"]

        def send(number: int) -> dict[str, Any]:
            with file.open("rb") as stream:
                stream.seek((number - 1) * length)
                body = stream.read(length)
            answer = self.client.upload_part(**place, PartNumber=number, Body=body, ContentMD5=content_md5(body))
            return {"PartNumber": number, "ETag": answer["ETag"]}

        try:
            parts = list(in_parallel(send, range(1, -(-size // length) + 1), STREAMS))
            _check_unchanged(file, file.stat().st_mtime_ns == before.st_mtime_ns)
            self.client.complete_multipart_upload(**place, MultipartUpload={"Parts": parts})
        except BaseException:
            with suppress(BotoCoreError, ClientError):
                self.client.abort_multipart_upload(**place)
            raise

    def _holds(self, bucket: str, key: str, size: int, sha256: str) -> bool:
        answer = self.client.head_object(Bucket=bucket, Key=key)
        return bool(answer["ContentLength"] == size and told_sha256(answer) == sha256)


def _update(digest: Any, file: Path, start: int, stop: int) -> None:
    # Without a buffer, which could be filled with what has not arrived yet.
    with file.open("rb", buffering=0) as stream:
        stream.seek(start)
        while stream.tell() < stop:
            digest.update(stream.read(min(CHUNK, stop - stream.tell())))


def open_store(environment: Environment) -> Store:
    """Return the store of this environment; nothing is asked of it yet.

    Raises:
        UserError: one of the two keys is missing, or the endpoint is no address or holds a password.
    """
    access, secret = credentials(environment)
    endpoint = environment.s3_endpoint or None
    name = shown_endpoint(endpoint)
    with _telling(name):
        session = boto3.session.Session(access, secret, region_name=environment.s3_region or None)
        return Store(session.client("s3", endpoint_url=endpoint, config=_config(own=endpoint is not None)), name)


@contextmanager
def _telling(store: str, bucket: str = "", key: str = "") -> Iterator[None]:
    """Turn the errors of a block that asks for an object or a bucket into a sentence."""
    place = f"s3://{bucket}/{key}".rstrip("/")
    try:
        yield
    except ClientError as error:
        told, status = error.response.get("Error", {}), error.response["ResponseMetadata"]["HTTPStatusCode"]
        code = str(told.get("Code", status))
        raise UserError(refusal(code, status, str(told.get("Message", "")), place, store)) from None
    except (BotoCoreError, HTTPError) as error:
        raise UserError(interruption(error, place, store)) from None


def _check_unchanged(file: Path, same: bool) -> None:
    if not same:
        raise UserError(f"{file} was changed while it was uploaded: run this again")


def _config(own: bool) -> Config:
    """Return boto3's settings; `own` for a store that is not Amazon's, which may know neither of its novelties."""
    options: dict[str, Any] = {}
    if own:
        options = {
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            "s3": {"addressing_style": "path"},
        }
    return Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        max_pool_connections=PARALLEL,
        **options,
    )
