"""A store that cannot be used is told in one sentence that names what to correct, and before any work begins."""

import re
import socket

import pytest

from diffusion_core.address import parse_s3
from diffusion_core.config.environment import Environment
from diffusion_core.errors import Unavailable, UserError
from diffusion_core.storage import open_store
from tests.storage.conftest import ACCESS, SECRET
from tests.storage.proxy import refuse, reset, stall


@pytest.fixture
def closed_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def problem(bucket, **variables):
    with pytest.raises(UserError) as raised:
        open_store(Environment(**variables)).check(bucket)
    message = str(raised.value)
    assert "\n" not in message
    assert SECRET not in message
    return message


def test_a_store_that_is_well_is_asked_once(store, bucket, proxy):
    store.check(bucket)
    assert len(proxy.requests) == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"s3_access_key": "somebody"}, "does not know the key id: correct DIFFUSION_S3_ACCESS_KEY"),
        ({"s3_secret_key": "canary"}, "not that of the key id.*: correct DIFFUSION_S3_SECRET_KEY"),
        ({"s3_access_key": None}, "DIFFUSION_S3_SECRET_KEY is set and DIFFUSION_S3_ACCESS_KEY is not: set both"),
        ({"s3_secret_key": None}, "DIFFUSION_S3_ACCESS_KEY is set and DIFFUSION_S3_SECRET_KEY is not: set both"),
        ({"s3_access_key": None, "s3_secret_key": None}, "no credentials .*: set DIFFUSION_S3_ACCESS_KEY and DIFF"),
        ({"s3_endpoint": "http://nowhere.invalid"}, "does not answer .its name is not known.*DIFFUSION_S3_ENDPOINT"),
        (
            {"s3_endpoint": "nowhere:9000"},
            "DIFFUSION_S3_ENDPOINT is nowhere:9000, which is not an address: write http://",
        ),
        ({"s3_endpoint": "ftp://nowhere"}, "DIFFUSION_S3_ENDPOINT is ftp://nowhere, which is not an address"),
        (
            {"s3_endpoint": "http://[::1"},
            r"DIFFUSION_S3_ENDPOINT is http://\[::1, which is not an address: write http://",
        ),
        ({"s3_endpoint": "http://me:canary@[::1"}, r"DIFFUSION_S3_ENDPOINT is http://\[::1, which is not an address"),
        (
            {"s3_endpoint": "http://local host:9000"},
            "DIFFUSION_S3_ENDPOINT is http://local host:9000, which is not an addr",
        ),
        ({"s3_endpoint": "http://localhost:90x0"}, "ENDPOINT is http://localhost:90x0, which is not an addr"),
        (
            {"s3_endpoint": "http://localhost:99999"},
            "DIFFUSION_S3_ENDPOINT is http://localhost:99999, which is not an addr",
        ),
        (
            {"s3_endpoint": "http://my_store:9000"},
            "DIFFUSION_S3_ENDPOINT is http://my_store:9000, which is not an address",
        ),
        ({"s3_endpoint": "http://"}, "DIFFUSION_S3_ENDPOINT is http://, which is not an address"),
        ({"s3_endpoint": "http://me:canary@host"}, r"DIFFUSION_S3_ENDPOINT \(http://host\) holds a user or a password"),
    ],
)
def test_what_is_wrong_in_the_environment_is_told(environment, bucket, change, sentence):
    message = problem(
        bucket, **environment.model_dump(include={"s3_endpoint", "s3_access_key", "s3_secret_key"}) | change
    )
    assert re.search(sentence, message), message
    assert "canary" not in message


def test_a_store_that_is_down_is_told(closed_port):
    message = problem("b", s3_endpoint=f"http://127.0.0.1:{closed_port}", s3_access_key=ACCESS, s3_secret_key=SECRET)
    assert "does not answer (no connection): start it, or correct DIFFUSION_S3_ENDPOINT" in message


def test_a_store_without_tls_is_told(server):
    address = server.replace("http://", "https://")
    message = problem("b", s3_endpoint=address, s3_access_key=ACCESS, s3_secret_key=SECRET)
    assert "cannot be reached by TLS (no TLS there): correct DIFFUSION_S3_ENDPOINT" in message


def test_a_bucket_that_is_missing_is_told(store):
    with pytest.raises(UserError, match="has no bucket nowhere: create it, or correct the address s3://nowhere"):
        store.check("nowhere")


@pytest.mark.parametrize(
    ("act", "sentence", "requests"),
    [
        (refuse(403, "AccessDenied"), "give no right to s3://.*DIFFUSION_S3_ACCESS_KEY and DIFFUSION_S3_SECRET_KEY", 1),
        (refuse(403, "RequestTimeTooSkewed"), "clock differs", 1),
        (refuse(400, "ExpiredToken"), "have expired: renew them", 1),
        (refuse(400, "AuthorizationHeaderMalformed"), "another region: correct DIFFUSION_S3_REGION", 1),
        (refuse(405, "MethodNotAllowed"), r"refuses s3://.*\(MethodNotAllowed\)", 1),
        (refuse(503, "SlowDown"), "too busy", 3),
        (reset, "the connection to the store .* broke", 3),
    ],
)
def test_what_the_store_says_is_told(store, bucket, proxy, act, sentence, requests):
    proxy.trouble(act, key="LIST")
    with pytest.raises(UserError, match=sentence) as caught:
        store.check(bucket)
    assert len(proxy.requests) == requests
    # What was worth trying again at once is so later.
    assert isinstance(caught.value, Unavailable) == (requests > 1)


def test_a_store_that_stalls_is_told(monkeypatch, environment, bucket, proxy):
    monkeypatch.setattr("diffusion_core.storage.client.READ_SECONDS", 0.3)
    proxy.trouble(stall, key="LIST")
    with pytest.raises(Unavailable, match=r"stalled while it was asked for s3://bucket-\d+: .*DIFFUSION_S3_ENDPOINT"):
        open_store(environment).check(bucket)


def test_credentials_may_come_from_where_boto3_finds_them(monkeypatch, proxy, bucket):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    open_store(Environment(s3_endpoint=proxy.url)).check(bucket)


@pytest.mark.parametrize("name", ["AWS_PROFILE", "AWS_DEFAULT_PROFILE"])
@pytest.mark.parametrize("keys", [{"s3_access_key": ACCESS, "s3_secret_key": SECRET}, {}])
def test_a_profile_that_does_not_exist_is_told_whatever_else_is_set(monkeypatch, server, name, keys):
    """With both keys set too: botocore looks at the profile first."""
    monkeypatch.setenv(name, "nobody")
    message = problem("bucket", s3_endpoint=server, **keys)
    assert message == "AWS_PROFILE or AWS_DEFAULT_PROFILE names no profile of ~/.aws: correct or unset it"


def test_a_name_is_asked_for_the_bucket_by_its_path(environment, bucket, proxy):
    """As `bucket.localhost` is the name of no machine."""
    by_name = environment.model_copy(update={"s3_endpoint": proxy.url.replace("127.0.0.1", "localhost")})
    open_store(by_name).check(bucket)


@pytest.mark.parametrize(
    ("text", "bucket", "prefix"),
    [("s3://b-1/", "b-1", ""), ("s3://b.c", "b.c", ""), ("s3://bb/a/ü?#", "bb", "a/ü?#/"), ("s3://bb/a/", "bb", "a/")],
)
def test_addresses(text, bucket, prefix):
    address = parse_s3(text)
    assert (address.bucket, address.prefix) == (bucket, prefix)
    assert str(address) == text.rstrip("/")


@pytest.mark.parametrize(
    "text", ["", "bucket/p", "s3:/b/p", "s3://", "s3:///p", "http://b/p", "s3://b/p\n", "s3://bb/a//b", "s3://bb/../c", "s3://k:canary@bb/p"]
)  # fmt: skip
def test_what_is_no_address_is_told_without_its_password(text):
    with pytest.raises(ValueError, match="is not an address in an object store: write s3://bucket/prefix") as raised:
        parse_s3(text)
    assert "canary" not in str(raised.value)
