"""Which requests are let in, before anything is sampled."""

import asyncio
import json
from contextlib import suppress

import httpx
import pytest

from diffusion_core.serving import measures
from diffusion_core.serving.admission import MOST_BYTES, Admission, Limits

PATH = "/images"
OPEN = Limits(token=None, queue=4, images=64, steps=250, seconds=30.0)


class Sampling:
    """An application that answers when it is told to."""

    def __init__(self):
        self.bodies = []
        self.may_answer = asyncio.Event()

    async def __call__(self, scope, receive, send):
        self.bodies.append((await receive())["body"])
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"images"})


def with_guard(limits, body, samples=lambda: True):
    """Run `body(sampling, client)` with a guarded application."""

    async def run():
        sampling = Sampling()
        transport = httpx.ASGITransport(Admission(sampling, PATH, limits, samples))
        async with httpx.AsyncClient(transport=transport, base_url="http://served") as client:
            await body(sampling, client)

    asyncio.run(run())


async def waiting(sampling, count):
    while len(sampling.bodies) < count:
        await asyncio.sleep(0)


def test_a_full_queue_answers_429_at_once_and_room_comes_back():
    async def body(sampling, client):
        first = [asyncio.create_task(client.post(PATH, json={"n": 2})) for _ in range(2)]
        await waiting(sampling, 2)
        refused = await client.post(PATH, json={"n": 1})
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.json() == {"detail": "the queue is full, with 4 images: ask again later"}
        assert len(sampling.bodies) == 2
        sampling.may_answer.set()
        assert [each.status_code for each in await asyncio.gather(*first)] == [200, 200]
        assert (await client.post(PATH, json={"n": 4})).status_code == 200

    with_guard(OPEN, body)


def test_a_longer_queue_takes_what_a_short_one_refuses():
    async def body(sampling, client):
        asked = [asyncio.create_task(client.post(PATH, json={"n": 2})) for _ in range(3)]
        await waiting(sampling, 3)
        sampling.may_answer.set()
        assert [each.status_code for each in await asyncio.gather(*asked)] == [200] * 3

    with_guard(Limits(None, 6, 64, 250, 30.0), body)


def test_a_request_alone_may_be_longer_than_the_queue():
    async def body(sampling, client):
        sampling.may_answer.set()
        assert (await client.post(PATH, json={"n": 64})).status_code == 200

    with_guard(OPEN, body)


def test_a_client_that_leaves_gives_its_room_back():
    async def body(sampling, client):
        gone = asyncio.create_task(client.post(PATH, json={"n": 4}))
        await waiting(sampling, 1)
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await gone
        sampling.may_answer.set()
        assert (await client.post(PATH, json={"n": 4})).status_code == 200

    with_guard(OPEN, body)


def test_what_takes_too_long_is_answered_504_and_gives_its_room_back():
    async def body(sampling, client):
        late = await client.post(PATH, json={"n": 4})
        assert late.status_code == 504
        assert "too long" in late.json()["detail"]
        sampling.may_answer.set()
        assert (await client.post(PATH, json={"n": 4})).status_code == 200

    with_guard(Limits(None, 4, 64, 250, 0.05), body)


def test_clients_of_a_process_that_died_are_told_to_ask_again():
    alive = True

    async def body(sampling, client):
        nonlocal alive
        waits = asyncio.create_task(client.post(PATH, json={"n": 4}))
        await waiting(sampling, 1)
        alive = False
        lost = await waits
        assert lost.status_code == 503
        assert lost.headers["retry-after"] == "5"
        assert (await client.post(PATH, json={"n": 4})).status_code == 503
        alive = True
        sampling.may_answer.set()
        assert (await client.post(PATH, json={"n": 4})).status_code == 200

    with_guard(OPEN, body, lambda: alive)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "secret"}, 401),
        ({"Authorization": "Bearer secret"}, 200),
        ({"Authorization": "bearer secret"}, 200),
        ({"Authorization": "Basic secret"}, 401),
    ],
)
def test_the_token_is_asked_for(headers, status):
    async def body(sampling, client):
        sampling.may_answer.set()
        answer = await client.post(PATH, json={}, headers=headers)
        assert answer.status_code == status
        assert ("www-authenticate" in answer.headers) == (status == 401)
        assert len(sampling.bodies) == (status == 200)
        assert "secret" not in answer.text

    with_guard(Limits("secret", 4, 64, 250, 30.0), body)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"n": 10**9}, "n is 1000000000: it must be at most 64"),
        ({"n": 65}, "n is 65"),
        ({"steps": 10**9}, "steps is 1000000000: it must be at most 250"),
    ],
)
def test_numbers_above_the_limits_are_refused(content, words):
    async def body(sampling, client):
        answer = await client.post(PATH, json=content)
        assert answer.status_code == 422
        assert words in answer.json()["detail"]
        assert sampling.bodies == []

    with_guard(OPEN, body)


def test_a_long_body_is_refused_before_it_is_parsed():
    async def body(sampling, client):
        answer = await client.post(PATH, content=b" " * (MOST_BYTES + 1))
        assert answer.status_code == 413
        assert sampling.bodies == []

    with_guard(OPEN, body)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 60_000, b"\xff", b'{"n": ' + b"9" * 5000 + b"}"])
def test_what_is_not_json_is_refused_in_a_sentence(content):
    async def body(sampling, client):
        answer = await client.post(PATH, content=content)
        assert (answer.status_code, answer.json()) == (422, {"detail": "the body is not JSON"})
        assert sampling.bodies == []

    with_guard(OPEN, body)


@pytest.mark.parametrize("content", [b"[1]", b'"n"', json.dumps({"n": "many"}).encode()])
def test_json_of_another_form_is_passed_on_as_it_came(content):
    async def body(sampling, client):
        sampling.may_answer.set()
        assert (await client.post(PATH, content=content)).status_code == 200
        assert sampling.bodies == [content]

    with_guard(OPEN, body)


def test_other_paths_need_no_token():
    async def body(sampling, client):
        sampling.may_answer.set()
        assert (await client.get("/health")).status_code == 200
        assert (await client.get(PATH)).status_code == 200

    with_guard(Limits("secret", 4, 64, 250, 30.0), body)


def test_answers_are_counted_by_their_status():
    def count(status):
        return measures.requests.labels(status)._value.get()

    before = count("200"), count("422")

    async def body(sampling, client):
        sampling.may_answer.set()
        for n in (1, 65, 1):
            await client.post(PATH, json={"n": n})

    with_guard(OPEN, body)
    assert (count("200") - before[0], count("422") - before[1]) == (2, 1)
