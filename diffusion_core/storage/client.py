"""The client of an object store: settings, listing, and conversion of errors."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from diffusion_core.config.environment import Environment
from diffusion_core.storage.access import credentials, shown_endpoint
from diffusion_core.storage.errors import Forbidden, interruption, refusal

# Concurrent requests. Python makes about a thousand small requests per second with any number of threads.
PARALLEL = 16
# Concurrent requests for one large object; with more, Python's threads wait for each other.
STREAMS = 4
# Attempts of a request or of a transfer.
ATTEMPTS = 5
# Name of the object that checks the permission to write.
PROBE = ".writable"
CONNECT_SECONDS = 10
READ_SECONDS = 60


@dataclass(frozen=True)
class Patience:
    """How long a request waits.

    Attributes:
        connect_seconds: for a connection.
        read_seconds: for each part of the answer.
        attempts: of a request.
    """

    connect_seconds: float
    read_seconds: float
    attempts: int


@dataclass(frozen=True)
class Object:
    """An object in a listing.

    Attributes:
        key: its key.
        size: bytes.
        etag: ETag without quotes.
        modified: when it was written, in seconds since 1970.
    """

    key: str
    size: int
    etag: str
    modified: float


@dataclass(frozen=True)
class Store:
    """A client of one store.

    All requests raise `UserError` if the store refuses them, and `Unavailable` for transient errors after all retries.

    Attributes:
        client: boto3's client.
        name: the endpoint without credentials, for messages.
    """

    client: Any
    name: str

    def check(self, bucket: str) -> None:
        """Check that the store answers, accepts the credentials and permits listing the bucket."""
        with self.translate_errors(bucket):
            self.client.list_objects_v2(Bucket=bucket, MaxKeys=1)

    def may_write(self, bucket: str, prefix: str) -> bool:
        """Return whether the credentials permit writing, by writing and deleting a small object."""
        key = f"{prefix}{PROBE}"
        try:
            with self.translate_errors(bucket, key):
                self.client.put_object(Bucket=bucket, Key=key, Body=b"1")
        except Forbidden:
            return False
        # Permission to delete is not needed. The key is always the same, so that at most one object remains.
        with suppress(Forbidden), self.translate_errors(bucket, key):
            self.client.delete_object(Bucket=bucket, Key=key)
        return True

    def objects(self, bucket: str, prefix: str) -> list[Object]:
        """Return the objects with keys that begin with `prefix`, by one request per 1000 objects."""
        with self.translate_errors(bucket, prefix):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            return [
                Object(each["Key"], each["Size"], each["ETag"].strip('"'), each["LastModified"].timestamp())
                for page in pages
                for each in page.get("Contents", ())
            ]

    @contextmanager
    def translate_errors(self, bucket: str, key: str = "") -> Iterator[None]:
        """Convert errors of requests for an object or a bucket in the block to `UserError`."""
        with _telling(self.name, f"s3://{bucket}/{key}".rstrip("/")):
            yield


def delete(store: Store, bucket: str, key: str) -> None:
    """Delete an object, if it exists."""
    with store.translate_errors(bucket, key):
        store.client.delete_object(Bucket=bucket, Key=key)


def open_store(environment: Environment, patience: Patience | None = None) -> Store:
    """Return the store of this environment, without sending a request.

    Args:
        environment: the environment, with address and keys.
        patience: how long a request waits; by default long enough for a busy store.

    Raises:
        UserError: one of the two keys is missing, or the endpoint is not a valid address or includes a password.
    """
    access, secret = credentials(environment)
    endpoint = environment.s3_endpoint or None
    name = shown_endpoint(endpoint)
    with _telling(name, "a client"):
        session = boto3.session.Session(access, secret, region_name=environment.s3_region or None)
        config = _config(endpoint is not None, patience or Patience(CONNECT_SECONDS, READ_SECONDS, ATTEMPTS))
        return Store(session.client("s3", endpoint_url=endpoint, config=config), name)


@contextmanager
def _telling(store: str, place: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        problem, status = error.response.get("Error", {}), error.response["ResponseMetadata"]["HTTPStatusCode"]
        code = str(problem.get("Code", status))
        raise refusal(code, status, str(problem.get("Message", "")), place, store) from None
    except (BotoCoreError, HTTPError) as error:
        raise interruption(error, place, store) from None


def _config(own: bool, patience: Patience) -> Config:
    """Return boto3's settings; `own` is for a store that is not Amazon's and may lack its newer features."""
    options: dict[str, Any] = {}
    if own:
        options = {
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            "s3": {"addressing_style": "path"},
        }
    return Config(
        connect_timeout=patience.connect_seconds,
        read_timeout=patience.read_seconds,
        retries={"mode": "standard", "total_max_attempts": patience.attempts},
        max_pool_connections=PARALLEL,
        **options,
    )
