"""The store's hash of an object, and the comparison with a file.

This package's uploads have the sha256 in the object's metadata. For other objects the ETag is the MD5 of the bytes,
unless the object was uploaded in parts or encrypted with a customer's key.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from typing import Any


def hashes(etag: str, answer: Mapping[str, Any]) -> list[str]:
    """Return the hashes to compute of an object: sha256, and also MD5 if only the ETag can be compared."""
    plain = answer.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in answer
    needs_md5 = stated_sha256(answer) is None and plain and re.fullmatch("[0-9a-f]{32}", etag)
    return ["sha256", "md5"] if needs_md5 else ["sha256"]


def matches(etag: str, answer: Mapping[str, Any], digests: Mapping[str, str]) -> bool:
    """Return whether `digests`, those that `hashes` names, equal the store's hash of the object."""
    if stated := stated_sha256(answer):
        return digests["sha256"] == stated
    return digests.get("md5", etag) == etag


def stated_sha256(answer: Mapping[str, Any]) -> str | None:
    """Return the sha256 in the object's metadata, or None."""
    # Some stores capitalise the names of metadata.
    stated = {name.lower(): value for name, value in answer.get("Metadata", {}).items()}.get("sha256", "")
    return stated if re.fullmatch("[0-9a-f]{64}", stated) else None


def content_md5(body: bytes) -> str:
    """Return the Content-MD5 header, with which a store detects a damaged body."""
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
