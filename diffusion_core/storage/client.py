"""The client of an object store: its settings, its listing, and its errors as one sentence each."""

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

# Requests at a time. Python makes about a thousand small ones a second, however many threads it has.
PARALLEL = 16
# Of one large object; with more, Python's threads wait for each other.
STREAMS = 4
# How often a request is tried, or a body begun.
ATTEMPTS = 5
# What is put where it has to be known whether anything may be.
PROBE = ".writable"
CONNECT_SECONDS = 10
READ_SECONDS = 60


@dataclass(frozen=True)
class Object:
    """What a listing says of an object; `size` in bytes, `etag` without quotes."""

    key: str
    size: int
    etag: str


@dataclass(frozen=True)
class Store:
    """A client of one store; `name` is its endpoint as it may be shown.

    All that asks it raises `UserError` for what it refuses, and `Unavailable` for trouble that outlasts the retries.
    """

    client: Any
    name: str

    def check(self, bucket: str) -> None:
        """Find out whether the store answers, takes the credentials and lets them list the bucket."""
        with self.telling(bucket):
            self.client.list_objects_v2(Bucket=bucket, MaxKeys=1)

    def may_write(self, bucket: str, prefix: str) -> bool:
        """Whether the credentials may put an object there; a tiny one is put and deleted."""
        key = f"{prefix}{PROBE}"
        try:
            with self.telling(bucket, key):
                self.client.put_object(Bucket=bucket, Key=key, Body=b"1")
        except Forbidden:
            return False
        # Who may add and not delete can share outputs too; always the same key, so that one object stays at most.
        with suppress(Forbidden), self.telling(bucket, key):
            self.client.delete_object(Bucket=bucket, Key=key)
        return True

    def objects(self, bucket: str, prefix: str) -> list[Object]:
        """Return the objects whose keys begin with `prefix`, by one request a thousand."""
        with self.telling(bucket, prefix):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            return [
                Object(each["Key"], each["Size"], each["ETag"].strip('"'))
                for page in pages
                for each in page.get("Contents", ())
            ]

    @contextmanager
    def telling(self, bucket: str, key: str = "") -> Iterator[None]:
        """Turn the errors of a block that asks for an object or a bucket into a sentence."""
        with _telling(self.name, f"s3://{bucket}/{key}".rstrip("/")):
            yield


def open_store(environment: Environment) -> Store:
    """Return the store of this environment; nothing is asked of it yet.

    Raises:
        UserError: one of the two keys is missing, or the endpoint is no address or holds a password.
    """
    access, secret = credentials(environment)
    endpoint = environment.s3_endpoint or None
    name = shown_endpoint(endpoint)
    with _telling(name, "a client"):
        session = boto3.session.Session(access, secret, region_name=environment.s3_region or None)
        return Store(session.client("s3", endpoint_url=endpoint, config=_config(own=endpoint is not None)), name)


@contextmanager
def _telling(store: str, place: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        told, status = error.response.get("Error", {}), error.response["ResponseMetadata"]["HTTPStatusCode"]
        code = str(told.get("Code", status))
        raise refusal(code, status, str(told.get("Message", "")), place, store) from None
    except (BotoCoreError, HTTPError) as error:
        raise interruption(error, place, store) from None


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
