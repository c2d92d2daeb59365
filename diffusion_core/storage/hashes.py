"""What a store tells of an object's bytes, and whether a file has them.

An upload of ours puts the sha256 into the object's metadata. Elsewhere the ETag is the MD5 of the bytes, unless the
object was uploaded in parts or encrypted with a key of one's own.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from typing import Any


def hashes(etag: str, answer: Mapping[str, Any]) -> list[str]:
    """Return which hashes of an object to make: sha256, and MD5 where nothing else can be compared."""
    plain = answer.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in answer
    needs_md5 = told_sha256(answer) is None and plain and re.fullmatch("[0-9a-f]{32}", etag)
    return ["sha256", "md5"] if needs_md5 else ["sha256"]


def matches(etag: str, answer: Mapping[str, Any], digests: Mapping[str, str]) -> bool:
    """Whether `digests`, which are those of `hashes`, are what the store told with the object."""
    if told := told_sha256(answer):
        return digests["sha256"] == told
    return digests.get("md5", etag) == etag


def told_sha256(answer: Mapping[str, Any]) -> str | None:
    """Return the sha256 in the object's metadata, if there is one."""
    # Some stores write the names of metadata with capitals.
    told = {name.lower(): value for name, value in answer.get("Metadata", {}).items()}.get("sha256", "")
    return told if re.fullmatch("[0-9a-f]{64}", told) else None


def content_md5(body: bytes) -> str:
    """Return what makes a store refuse a body that was changed on its way."""
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
