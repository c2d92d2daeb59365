"""Addresses as people write them: of a bucket, and any as it may be shown."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class S3Address:
    """A place in an object store.

    Args:
        bucket: its name.
        prefix: what the keys begin with: "" for all of the bucket, else a path with a slash at its end.
    """

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


def parse_s3(text: str) -> S3Address:
    """Read `s3://bucket/prefix`.

    Raises:
        ValueError: it is none; the message is half a sentence, without a password that may stand in it.
    """
    found = re.fullmatch(r"s3://([A-Za-z0-9][A-Za-z0-9._-]+)(?:/(.*))?", text)
    prefix = ((found and found[2]) or "").rstrip("/")
    if found is None or not prefix.isprintable() or {"", ".", ".."} & set(prefix.split("/") if prefix else ()):
        raise ValueError(f"{without_userinfo(text)!r} is no address in an object store: write s3://bucket/prefix")
    return S3Address(found[1], f"{prefix}/" if prefix else "")


def without_userinfo(uri: str) -> str:
    """Return `uri` as it may be shown: without user, password and query."""
    return re.sub(r"(?<=://).*@", "", uri, flags=re.DOTALL).partition("?")[0]
