"""Addresses of buckets, and addresses without credentials for display."""

import re
from dataclasses import dataclass

# After `://`. A quote or what closes a list of YAML ends a query.
_ADDRESS = re.compile(r"(?<=://)(?:[^\s/@\"']*@)?(?P<place>[^\s?\"']*)(?:\?[^\s\"']*?)?(?P<end>[,;}\])]*(?=[\s\"']|$))")


@dataclass(frozen=True)
class S3Address:
    """An address in an object store.

    Attributes:
        bucket: name of the bucket.
        prefix: prefix of the keys: "" for the whole bucket, else a path that ends with a slash.
    """

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


def parse_s3(text: str) -> S3Address:
    """Parse `s3://bucket/prefix`.

    Raises:
        ValueError: the text is not such an address; the message shows it without credentials.
    """
    found = re.fullmatch(r"s3://([A-Za-z0-9][A-Za-z0-9._-]+)(?:/(.*))?", text)
    prefix = ((found and found[2]) or "").rstrip("/")
    if found is None or not prefix.isprintable() or {"", ".", ".."} & set(prefix.split("/") if prefix else ()):
        raise ValueError(f"{without_userinfo(text)!r} is not an address in an object store: write s3://bucket/prefix")
    return S3Address(found[1], f"{prefix}/" if prefix else "")


def without_credentials(text: str) -> str:
    """Return a text, as YAML, without user, password and query in each address in it: a query may be a signature."""
    return _ADDRESS.sub(r"\g<place>\g<end>", text)


def without_userinfo(uri: str) -> str:
    """Return `uri` without user, password and query."""
    return re.sub(r"(?<=://).*@", "", uri, flags=re.DOTALL).partition("?")[0]
