"""Downloads of objects: a file gets its final name only if it is complete and has the store's hash."""

import hashlib
import os
import random
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from botocore.exceptions import HTTPClientError, IncompleteReadError
from urllib3.exceptions import HTTPError

from diffusion_core.errors import Unavailable, UserError
from diffusion_core.parallel import as_done, in_parallel
from diffusion_core.storage.client import ATTEMPTS, PARALLEL, STREAMS, Object, Store
from diffusion_core.storage.errors import changed
from diffusion_core.storage.hashes import hashes, matches

# Maximum seconds between attempts of one transfer.
LONGEST_PAUSE = 20.0
# Bytes per request. Ranges are long, because a store without a stored hash reads the whole object for each range.
RANGE = 64 * 2**20
CHUNK = 2**18
# An object with a wrong hash is fetched a second time.
TRIES_TO_MATCH = 2


def download(store: Store, bucket: str, wanted: Object, target: Path) -> str:
    """Fetch an object to `target` and return its sha256; after an error `target` does not exist.

    Raises:
        UserError: the store cannot be used, the object was replaced since it was listed, or its hash was wrong twice.
        OSError: the file cannot be written.
    """
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    try:
        with store.translate_errors(bucket, wanted.key):
            for _ in range(TRIES_TO_MATCH):
                answer, digests = _fetch(store, bucket, wanted, temporary)
                if matches(wanted.etag, answer, digests):
                    temporary.replace(target)
                    return digests["sha256"]
        raise UserError(
            f"s3://{bucket}/{wanted.key} arrives with another hash than the store {store.name} says it has:"
            " upload the object again, or look after the store or the network before DIFFUSION_S3_ENDPOINT"
        )
    finally:
        temporary.unlink(missing_ok=True)


def download_all(
    store: Store, bucket: str, wanted: Sequence[tuple[Object, Path]]
) -> Iterator[tuple[Object, Path, str]]:
    """Fetch objects concurrently; yield each with its file and sha256 when it is complete.

    The first error ends it. Files that were yielded remain.
    """
    large = [each for each in wanted if each[0].size > RANGE]
    small = [each for each in wanted if each[0].size <= RANGE]
    for each in large:
        yield *each, download(store, bucket, *each)
    with closing(as_done(lambda each: download(store, bucket, *each), small, PARALLEL)) as fetched:
        for each, sha256 in fetched:
            yield *each, sha256


def _fetch(store: Store, bucket: str, wanted: Object, file: Path) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Write the object to `file`; return the response of its first range, and the hashes of `file`."""
    with file.open("wb") as stream:
        stream.truncate(wanted.size)
    spans = [(start, min(start + RANGE, wanted.size)) for start in range(0, wanted.size, RANGE)] or [(0, 0)]
    answers = in_parallel(lambda span: _fetch_span(store, bucket, wanted, file, *span), spans, STREAMS)
    with closing(answers):
        first = next(answers)
        digests = {name: hashlib.new(name, usedforsecurity=False) for name in hashes(wanted.etag, first)}
        threads = len(digests) if len(spans) > 1 else 1
        for span, _ in zip(spans, chain([first], answers), strict=True):
            # Hash received ranges while the others are being fetched.
            update = partial(_update, file=file, start=span[0], stop=span[1])
            deque(in_parallel(update, [*digests.values()], threads), maxlen=0)
    return first, {name: digest.hexdigest() for name, digest in digests.items()}


def _fetch_span(store: Store, bucket: str, wanted: Object, file: Path, start: int, stop: int) -> Mapping[str, Any]:
    """Write bytes `start` to `stop` of the object to `file`, and resume after an interruption."""
    place = {"Bucket": bucket, "Key": wanted.key, "IfMatch": f'"{wanted.etag}"'}
    with file.open("r+b") as stream:
        stream.seek(start)
        for attempt in range(1, ATTEMPTS + 1):
            position = stream.tell()
            whole = (position, stop) == (0, wanted.size)
            answer = store.client.get_object(**place, **({} if whole else {"Range": f"bytes={position}-{stop - 1}"}))
            with closing(answer["Body"]) as body:
                # Some stores ignore If-Match.
                if answer["ETag"].strip('"') != wanted.etag or answer["ContentLength"] != stop - position:
                    raise Unavailable(changed(f"s3://{bucket}/{wanted.key}"))
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


def _update(digest: Any, file: Path, start: int, stop: int) -> None:
    # Unbuffered, because a buffer could read bytes that have not arrived yet.
    with file.open("rb", buffering=0) as stream:
        stream.seek(start)
        while stream.tell() < stop:
            digest.update(stream.read(min(CHUNK, stop - stream.tell())))
