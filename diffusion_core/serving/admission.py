"""Which requests are let in: with the token, within the limits, while there is room in the queue."""

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from diffusion_core.serving import measures
from diffusion_core.serving.answer import refusal

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

MOST_BYTES = 2**16
# Between two looks at the process that samples.
LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Limits:
    """What a request may take.

    Attributes:
        token: that clients send as `Authorization: Bearer TOKEN`, or None for none.
        queue: the most images that were asked for and are not sent; a request alone may have more.
        images: of one request, at most.
        steps: of a sampler, at most.
        seconds: until a request is answered.
    """

    token: str | None
    queue: int
    images: int
    steps: int
    seconds: float


class _Unanswered(Exception):
    """The application will not answer."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


class Admission:
    """ASGI middleware in front of a path: refuses before anything is parsed further or sampled.

    Args:
        app: the application.
        path: the path that is guarded; others pass.
        limits: the limits.
        samples: whether the process that samples is there.
    """

    def __init__(self, app: App, path: str, limits: Limits, samples: Callable[[], bool]) -> None:
        self._app = app
        self._path = path
        self._limits = limits
        self._samples = samples
        self._in_flight = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it: 401, 413, 422, 429, 503 or 504."""
        if scope["type"] != "http" or scope["path"] != self._path or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 0

        async def counted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._admitted(scope, receive, counted)
        except _Unanswered as problem:
            # A client that reads slowly has the beginning of its answer already.
            if not status:
                response = refusal(problem.status, problem.sentence)
                response.headers["Retry-After"] = "5"
                await response(scope, receive, counted)
        finally:
            # A client that has gone gets no answer.
            measures.requests.labels(str(status or "gone")).inc()
            measures.seconds.observe(time.perf_counter() - begun)

    async def _admitted(self, scope: Message, receive: Receive, send: Send) -> None:
        async def refuse(status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
            response = refusal(status, sentence)
            response.headers.update(headers or {})
            await response(scope, receive, send)

        if not self._has_token(scope):
            await refuse(
                HTTPStatus.UNAUTHORIZED,
                "the token is missing or wrong: send it as Authorization: Bearer TOKEN",
                {"WWW-Authenticate": "Bearer"},
            )
            return
        body = await _body(receive)
        if body is None:
            await refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is longer than {MOST_BYTES:,} bytes")
            return
        numbers = _numbers(body)
        if numbers is None:
            await refuse(HTTPStatus.UNPROCESSABLE_ENTITY, "the body is not JSON")
            return
        count, steps = numbers
        for name, value, most in (("n", count, self._limits.images), ("steps", steps, self._limits.steps)):
            if value > most:
                await refuse(HTTPStatus.UNPROCESSABLE_ENTITY, f"{name} is {value}: it must be at most {most}")
                return
        if self._in_flight and self._in_flight + count > self._limits.queue:
            await refuse(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"the queue is full, with {self._in_flight} images: ask again later",
                {"Retry-After": "1"},
            )
            return
        self._count(count)
        try:
            await self._answered(scope, _replayed(body, receive), send)
        finally:
            self._count(-count)

    async def _answered(self, scope: Message, receive: Receive, send: Send) -> None:
        """Wait for the application, while the process that samples is there.

        Raises:
            _Unanswered: it died, or takes too long.
        """
        answering = asyncio.ensure_future(self._app(scope, receive, send))
        deadline = time.monotonic() + self._limits.seconds
        try:
            while not answering.done():
                if not self._samples():
                    raise _Unanswered(
                        HTTPStatus.SERVICE_UNAVAILABLE, "the process that samples has died and starts again: ask again"
                    )
                if time.monotonic() > deadline:
                    raise _Unanswered(
                        HTTPStatus.GATEWAY_TIMEOUT, "sampling takes too long: ask again later, or for fewer images"
                    )
                await asyncio.wait([answering], timeout=min(LOOK_SECONDS, self._limits.seconds))
            await answering
        finally:
            answering.cancel()

    def _has_token(self, scope: Message) -> bool:
        if self._limits.token is None:
            return True
        scheme, _, sent = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(sent.strip(), self._limits.token.encode())

    def _count(self, change: int) -> None:
        self._in_flight += change
        measures.in_flight.set(self._in_flight)


async def _body(receive: Receive) -> bytes | None:
    """Return the body of a request, or None if it is too long."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MOST_BYTES:
            return None
    return body


def _numbers(body: bytes) -> tuple[int, int] | None:
    """Return n and steps of a body, or None if it is not JSON; the request's type refuses other than whole numbers."""
    try:
        content = json.loads(body)
    # Brackets in thousands.
    except (ValueError, RecursionError):
        return None
    found = [content.get(name) if isinstance(content, dict) else None for name in ("n", "steps")]
    count, steps = (each if isinstance(each, int) else 1 for each in found)
    return max(count, 1), steps


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a source of messages that gives the body again, and then what comes after it."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
