"""Fetches files from web servers, and checks their hashes.

They lie in a folder that persists, by their sha256. So a file is fetched once, an interrupted fetch is resumed, and
what lies there whole needs no server.
"""

import hashlib
import random
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import httpx

from diffusion_core.address import without_userinfo
from diffusion_core.config.environment import Environment
from diffusion_core.data.downloads import only_download
from diffusion_core.errors import Unavailable, UserError
from diffusion_core.files import sha256_of
from diffusion_core.progress import Progress

# Where the environment names no folder for downloads.
FOLDER = Path(".cache/downloads")
# Attempts in a row that bring less than a part.
ATTEMPTS = 5
PART_BYTES = 2**20
LONGEST_PAUSE = 20.0
SECONDS_TO_ANSWER = 30.0
# A server that sends less in that time is as good as silent.
SLOW_SECONDS, SLOW_BYTES = 60.0, 2**14
MOST_REDIRECTS = 10
LOOPBACK = ("localhost", "127.0.0.1", "::1")
BUSY = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)


@dataclass(frozen=True)
class WebFile:
    """A file on a web server.

    Attributes:
        key: the key and value of `ingest.source` that name it, for messages.
        url: its address.
        sha256: of its bytes, in lower case.
        correct: what to correct where the hash is another, for messages.
    """

    key: str
    url: str
    sha256: str
    correct: str

    @property
    def name(self) -> str:
        """Its name on the disk."""
        name = re.sub(r"[^\w.-]", "_", PurePosixPath(unquote(urlsplit(self.url).path)).name, flags=re.ASCII)
        return name.lstrip(".")[-100:] or "file"

    def fetched(self, environment: Environment) -> Path:
        """Return where the file lies, after it was fetched if it was not there.

        Args:
            environment: the folder of downloads.

        Raises:
            UserError: the server has no such file, or one with another sha256.
            Unavailable: the server does not answer.
            OSError: the file cannot be written.
        """
        folder = downloads_folder(environment) / self.sha256
        file = folder / self.name
        with only_download(folder):
            if not file.exists() or sha256_of(file) != self.sha256:
                file.unlink(missing_ok=True)
                self._fetch(file.with_name(f"{file.name}.part"), file)
        return file

    def _fetch(self, part: Path, file: Path) -> None:
        print(f"fetches {without_userinfo(self.url)}", flush=True)
        was_resumed = part.exists()
        try:
            was_resumed |= self._receive(part)
            actual = sha256_of(part)
            if actual != self.sha256 and was_resumed:
                # Parts of two versions; all of one may be right.
                part.unlink()
                self._receive(part)
                actual = sha256_of(part)
            if actual != self.sha256:
                with part.open("rb") as stream:
                    is_page = stream.read(512).lstrip().startswith(b"<")
                page = ", and is a web page" if is_page else ""
                part.unlink()
                raise UserError(
                    f"{self.key}, whose file has the sha256 {actual}{page}, where {self.sha256} is expected:"
                    f" {self.correct}"
                )
            part.rename(file)
        finally:
            if part.exists() and not part.stat().st_size:
                part.unlink()

    def _receive(self, part: Path) -> bool:
        """Write what the server sends to `part`, after what lies there; return whether it took several attempts."""
        failures = attempts = 0
        is_local = _is_loopback(urlsplit(self.url).hostname)
        # A proxy is for other machines.
        with (
            httpx.Client(timeout=SECONDS_TO_ANSWER, trust_env=not is_local) as client,
            Progress("fetch", None, "B") as progress,
        ):
            while True:
                before = _size(part)
                try:
                    self._receive_rest(client, part, progress)
                    return attempts > 0
                except httpx.InvalidURL as error:
                    raise UserError(f"{self.key}, which is not an address ({error}): correct it") from None
                except (httpx.TransportError, _Busy) as error:
                    failures = 0 if _size(part) - before >= PART_BYTES else failures + 1
                    if failures == ATTEMPTS:
                        raise Unavailable(
                            f"{self.key}, whose server does not send the file ({error or type(error).__name__}): try"
                            " again later, or correct the address"
                        ) from None
                attempts += 1
                time.sleep(random.uniform(0.0, min(2.0**failures, LONGEST_PAUSE)))

    def _receive_rest(self, client: httpx.Client, part: Path, progress: Progress) -> None:
        start = _size(part)
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
        url = httpx.URL(self.url)
        for _ in range(MOST_REDIRECTS):
            with client.stream("GET", url, headers=headers) as answer:
                if answer.has_redirect_location:
                    url = url.join(answer.headers["Location"])
                    self._check_redirect(url)
                    continue
                self._write(answer, part, start, progress)
                return
        raise UserError(f"{self.key}, whose server redirects more than {MOST_REDIRECTS} times: correct the address")

    def _write(self, answer: httpx.Response, part: Path, start: int, progress: Progress) -> None:
        status = answer.status_code
        if status in BUSY or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise _Busy(f"it answers {status}")
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            # All of it lies there, or another version that was longer.
            part.unlink()
            raise _Busy("it has no such part")
        if status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
            raise UserError(f"{self.key}, whose server answers {status} {answer.reason_phrase}: correct the address")
        if status == HTTPStatus.OK:
            start = 0
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink(missing_ok=True)
            raise _Busy("it sends another part than it was asked for")
        with suppress(KeyError, ValueError):
            progress.total = start + int(answer.headers["Content-Length"])
        progress.update(start)
        since, count = time.monotonic(), 0
        with part.open("ab") as stream:
            stream.truncate(start)
            # As it was sent: the hash is that of the file.
            for chunk in answer.iter_raw():
                stream.write(chunk)
                progress.add(len(chunk))
                count += len(chunk)
                if time.monotonic() - since > SLOW_SECONDS:
                    if count < SLOW_BYTES:
                        raise _Busy(f"it sends {count} bytes in {SLOW_SECONDS:.0f} seconds")
                    since, count = time.monotonic(), 0

    def _check_redirect(self, url: httpx.URL) -> None:
        try:
            check_address(str(url))
            if url.scheme == "http" and not _is_loopback(urlsplit(self.url).hostname):
                raise ValueError
        except ValueError:
            raise UserError(
                f"{self.key}, whose server redirects to {without_userinfo(str(url))}, which is not followed: name"
                " another address"
            ) from None


def downloads_folder(environment: Environment) -> Path:
    """Return the folder of what was fetched from web servers."""
    return environment.downloads or FOLDER


def check_address(url: str) -> str:
    """Return the address of a file on a web server.

    Raises:
        ValueError: it is not such an address, or has a password in it, or is of another machine and not https://.
    """
    parts = urlsplit(url)
    is_safe = parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname))
    if not is_safe or not parts.hostname or not url.isprintable() or " " in url:
        raise ValueError(f"{without_userinfo(url)!r} is not the address of a file: write https://host/path")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"{without_userinfo(url)!r} has a user or password before it: leave them out")
    return url


def check_sha256(text: str) -> str:
    """Return a sha256 in lower case.

    Raises:
        ValueError: it is not one.
    """
    digits = hashlib.sha256().digest_size * 2
    if not re.fullmatch(f"[0-9a-f]{{{digits}}}", text.lower()):
        raise ValueError(f"{text!r} is not a sha256: write its {digits} hexadecimal digits, as sha256sum prints them")
    return text.lower()


class _Busy(Exception):
    """A server may send the file later."""


def _is_loopback(host: str | None) -> bool:
    return host in LOOPBACK


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
