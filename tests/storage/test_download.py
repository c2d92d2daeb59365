"""A file under its final name is whole and is what the store has, whatever befalls the transfer."""

import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_core import storage
from diffusion_core.errors import UserError
from diffusion_core.storage import client, fetching, open_store
from tests.storage.proxy import flip, refuse, reset, stall, stall_after, truncate

BODY = os.urandom(100_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def wanted(admin, bucket, store):
    admin.put_object(Bucket=bucket, Key="cat/a.png", Body=BODY)
    (wanted,) = store.objects(bucket, "cat/")
    return wanted


@pytest.fixture
def ranges(monkeypatch):
    """BODY is fetched in four ranges, each longer than what a truncated answer holds."""
    monkeypatch.setattr(fetching, "RANGE", 25_000)
    monkeypatch.setattr(fetching, "CHUNK", 7_000)


def test_a_listing_goes_on_over_all_its_pages(admin, bucket, store, proxy):
    for number in range(1001):
        admin.put_object(Bucket=bucket, Key=f"p/{number:04d}.png", Body=b"1")
    found = store.objects(bucket, "p/")
    assert [each.key for each in found] == [f"p/{number:04d}.png" for number in range(1001)]
    assert {(each.size, each.etag) for each in found} == {(1, hashlib.md5(b"1").hexdigest())}
    assert proxy.lists() == 2


def test_one_request_brings_one_object(store, bucket, wanted, tmp_path, proxy):
    assert storage.download(store, bucket, wanted, tmp_path / "a") == SHA256
    assert (tmp_path / "a").read_bytes() == BODY
    assert (proxy.count("GET"), proxy.count("HEAD")) == (1, 0)


def test_an_empty_object_is_an_empty_file(admin, bucket, store, tmp_path):
    admin.put_object(Bucket=bucket, Key="empty", Body=b"")
    (wanted,) = store.objects(bucket, "empty")
    storage.download(store, bucket, wanted, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b""


@pytest.mark.usefixtures("ranges")
def test_large_objects_come_in_ranges_of_one_version(store, bucket, wanted, tmp_path, proxy):
    assert storage.download(store, bucket, wanted, tmp_path / "a") == SHA256
    assert (tmp_path / "a").read_bytes() == BODY
    gets = [each.headers for each in proxy.requests if each.key]
    assert {each["Range"] for each in gets} == {
        f"bytes={a}-{min(a + 25_000, 100_000) - 1}" for a in range(0, 10**5, 25_000)
    }
    assert {each["If-Match"] for each in gets} == {f'"{wanted.etag}"'}


TROUBLES = {
    "slow down": refuse(503, "SlowDown"),
    "internal error": refuse(500, "InternalError"),
    "reset": reset,
    "truncated": truncate(10_000),
    "truncated at once": truncate(0),
}


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("in_ranges", [False, True])
def test_trouble_that_passes_is_not_noticed(store, bucket, wanted, tmp_path, proxy, trouble, in_ranges, request):
    if in_ranges:
        request.getfixturevalue("ranges")
    proxy.trouble(TROUBLES[trouble], times=2)
    assert storage.download(store, bucket, wanted, tmp_path / "a") == SHA256
    assert (tmp_path / "a").read_bytes() == BODY
    assert proxy.count("GET") == (4 if in_ranges else 1) + 2


@pytest.mark.parametrize(
    ("trouble", "sentence"),
    [
        ("slow down", r"too busy for s3://bucket-\d+/cat/a.png \(SlowDown\): .*DIFFUSION_S3_ENDPOINT"),
        ("internal error", r"fails at s3://.*\(InternalError\): see whether its disk is full"),
        ("reset", "the connection to the store .* broke while s3://.* was asked for .*DIFFUSION_S3_ENDPOINT"),
        ("truncated", "broke.* in the middle of s3://.*DIFFUSION_S3_ENDPOINT|broke while"),
    ],
)
def test_trouble_that_stays_is_told_after_a_bounded_number_of_tries(
    store, bucket, wanted, tmp_path, proxy, trouble, sentence
):
    act = truncate(0) if trouble == "truncated" else TROUBLES[trouble]
    proxy.trouble(act)
    with pytest.raises(UserError, match=sentence):
        storage.download(store, bucket, wanted, tmp_path / "a")
    assert proxy.count("GET") == fetching.ATTEMPTS
    assert list(tmp_path.iterdir()) == []


def test_a_body_that_broke_off_goes_on_where_it_was(store, bucket, wanted, tmp_path, proxy):
    proxy.trouble(truncate(70_000), times=1)
    storage.download(store, bucket, wanted, tmp_path / "a")
    first, second = (each.headers.get("Range") for each in proxy.requests if each.key)
    assert first is None
    assert second == "bytes=70000-99999"


def test_pauses_grow(monkeypatch, store, bucket, wanted, tmp_path, proxy):
    pauses = []
    for module in (client, fetching):
        monkeypatch.setattr(module, "ATTEMPTS", 7)
    monkeypatch.setattr(fetching, "LONGEST_PAUSE", 20.0)
    monkeypatch.setattr(fetching.random, "uniform", lambda least, most: most)
    monkeypatch.setattr(fetching.time, "sleep", pauses.append)
    proxy.trouble(truncate(0))
    with pytest.raises(UserError):
        storage.download(store, bucket, wanted, tmp_path / "a")
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 20.0]


@pytest.mark.parametrize("act", [stall, stall_after(50_000)])
def test_a_stalled_transfer_ends(monkeypatch, environment, bucket, wanted, tmp_path, proxy, act):
    monkeypatch.setattr(client, "READ_SECONDS", 0.5)
    for module in (client, fetching):
        monkeypatch.setattr(module, "ATTEMPTS", 2)
    proxy.trouble(act)
    with pytest.raises(UserError, match="stalled while it was asked for s3://.*DIFFUSION_S3_ENDPOINT"):
        storage.download(open_store(environment), bucket, wanted, tmp_path / "a")
    assert proxy.count("GET") == 2
    assert list(tmp_path.iterdir()) == []


def test_a_right_that_is_missing_is_not_asked_for_again(store, bucket, wanted, tmp_path, proxy):
    proxy.trouble(refuse(403, "AccessDenied"))
    with pytest.raises(UserError, match=r"no right to s3://.*/cat/a.png \(AccessDenied\): .*DIFFUSION_S3_ACCESS_KEY"):
        storage.download(store, bucket, wanted, tmp_path / "a")
    assert proxy.count("GET") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("metadata", [{}, {"sha256": SHA256}])
def test_a_flipped_byte_is_noticed(admin, bucket, store, tmp_path, proxy, metadata):
    admin.put_object(Bucket=bucket, Key="a.png", Body=BODY, Metadata=metadata)
    (wanted,) = store.objects(bucket, "")
    proxy.trouble(flip(50_000), times=1)
    assert storage.download(store, bucket, wanted, tmp_path / "a") == SHA256
    assert proxy.count("GET") == 2
    proxy.trouble(flip(50_000))
    with pytest.raises(UserError, match=r"a\.png arrives with another hash than .*DIFFUSION_S3_ENDPOINT"):
        storage.download(store, bucket, wanted, tmp_path / "b")
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.usefixtures("ranges")
def test_a_flipped_byte_in_one_range_is_noticed(store, bucket, wanted, tmp_path, proxy):
    proxy.trouble(flip(5))
    with pytest.raises(UserError, match="another hash"):
        storage.download(store, bucket, wanted, tmp_path / "a")


def test_nothing_but_the_hash_would_notice_it(monkeypatch, store, bucket, wanted, tmp_path, proxy):
    monkeypatch.setattr(fetching, "matches", lambda *arguments: True)
    proxy.trouble(flip(50_000))
    storage.download(store, bucket, wanted, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() != BODY
    assert (tmp_path / "a").stat().st_size == len(BODY)


@pytest.mark.parametrize("body", [BODY[::-1], b"shorter"])
def test_an_object_that_was_replaced_meanwhile_is_told(admin, store, bucket, wanted, tmp_path, body):
    """This server does not heed If-Match."""
    admin.put_object(Bucket=bucket, Key="cat/a.png", Body=body)
    with pytest.raises(UserError, match="cat/a.png was replaced while it was fetched: run this again"):
        storage.download(store, bucket, wanted, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_an_object_that_is_gone_is_told(admin, store, bucket, wanted, tmp_path, proxy):
    admin.delete_object(Bucket=bucket, Key="cat/a.png")
    with pytest.raises(UserError, match=r"has no s3://bucket-\d+/cat/a.png \(any more\): run this again"):
        storage.download(store, bucket, wanted, tmp_path / "a")
    assert proxy.count("GET") == 1


def test_the_first_error_ends_the_others(admin, bucket, store, tmp_path, proxy):
    for number in range(200):
        admin.put_object(Bucket=bucket, Key=f"{number:03d}.png", Body=b"1")
    wanted = [(each, tmp_path / each.key) for each in store.objects(bucket, "")]
    proxy.trouble(refuse(403, "AccessDenied"))
    with pytest.raises(UserError, match="AccessDenied"):
        list(storage.download_all(store, bucket, wanted))
    assert proxy.count("GET") < 100
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_is_an_oserror_and_leaves_nothing(environment, bucket, wanted, tmp_path):
    script = f"""
import pathlib, resource
from diffusion_core.config.environment import Environment
from diffusion_core.storage import Object, download, open_store
store = open_store(Environment())
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
try:
    download(store, {bucket!r}, {wanted!r}, pathlib.Path("a"))
except OSError as error:
    print(type(error).__name__)
"""
    variables = {
        "DIFFUSION_S3_ENDPOINT": environment.s3_endpoint,
        "DIFFUSION_S3_ACCESS_KEY": environment.s3_access_key.get_secret_value(),
        "DIFFUSION_S3_SECRET_KEY": environment.s3_secret_key.get_secret_value(),
        "PYTHONPATH": str(Path.cwd()),
    }
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("OSError\n", "")
    assert list(tmp_path.iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
