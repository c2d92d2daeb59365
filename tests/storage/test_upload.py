"""What the bucket has under a key is the whole file, or what it had before."""

import hashlib
import os
from pathlib import Path

import pytest

from diffusion_core import storage
from diffusion_core.errors import UserError
from diffusion_core.storage import fetching, sending
from tests.storage.proxy import refuse, reset

BODY = os.urandom(450_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(BODY)
    return file


@pytest.fixture
def parts(monkeypatch):
    """The file is sent in five parts."""
    monkeypatch.setattr(sending, "PART", 100_000)


def held(admin, bucket, key="p/a.png"):
    return admin.get_object(Bucket=bucket, Key=key)["Body"].read()


def test_an_upload_is_one_request_and_is_looked_at(admin, store, bucket, file, proxy):
    assert storage.upload(store, bucket, file, "p/a.png")
    assert held(admin, bucket) == BODY
    head = admin.head_object(Bucket=bucket, Key="p/a.png")
    assert {name.lower(): value for name, value in head["Metadata"].items()}["sha256"] == SHA256
    assert head["ContentType"] == "image/png"
    assert [each.method for each in proxy.requests] == ["PUT", "HEAD"]


def test_a_store_that_is_not_amazons_meets_no_checksums_of_amazons(store, bucket, file, proxy):
    storage.upload(store, bucket, file, "p/a.png")
    assert not [name for each in proxy.requests for name in each.headers if "checksum" in name.lower()]
    assert "Content-MD5" in proxy.requests[0].headers


@pytest.mark.usefixtures("parts")
def test_a_large_file_goes_in_parts(admin, store, bucket, file, proxy):
    assert storage.upload(store, bucket, file, "p/a.png")
    assert held(admin, bucket) == BODY
    assert proxy.count("PUT") == 5
    assert not admin.list_multipart_uploads(Bucket=bucket).get("Uploads")
    assert storage.download(store, bucket, store.objects(bucket, "p/")[0], file.with_name("b")) == SHA256


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("before", [None, b"old"])
@pytest.mark.parametrize("act", [reset, refuse(403, "AccessDenied"), refuse(503, "SlowDown")])
def test_a_lost_part_leaves_what_was_there_and_no_open_upload(admin, store, bucket, file, proxy, before, act):
    if before:
        admin.put_object(Bucket=bucket, Key="p/a.png", Body=before)
    proxy.trouble(act, method="PUT", query="partNumber=2")
    with pytest.raises(UserError, match=r"s3://.*p/a\.png"):
        storage.upload(store, bucket, file, "p/a.png")
    assert not admin.list_multipart_uploads(Bucket=bucket).get("Uploads")
    assert [each.key for each in store.objects(bucket, "p/")] == (["p/a.png"] if before else [])
    if before:
        assert held(admin, bucket) == before
    proxy.troubles.clear()
    assert storage.upload(store, bucket, file, "p/a.png")
    assert held(admin, bucket) == BODY


@pytest.mark.usefixtures("parts")
def test_without_the_abort_an_upload_would_stay_open(monkeypatch, admin, store, bucket, file, proxy):
    monkeypatch.setattr(store.client, "abort_multipart_upload", lambda **place: None)
    proxy.trouble(reset, method="PUT", query="partNumber=2")
    with pytest.raises(UserError):
        storage.upload(store, bucket, file, "p/a.png")
    (opened,) = admin.list_multipart_uploads(Bucket=bucket)["Uploads"]
    admin.abort_multipart_upload(Bucket=bucket, Key=opened["Key"], UploadId=opened["UploadId"])


@pytest.mark.usefixtures("parts")
def test_a_part_that_gets_lost_for_a_while_is_sent_again(admin, store, bucket, file, proxy):
    proxy.trouble(reset, method="PUT", query="partNumber=2", times=2)
    assert storage.upload(store, bucket, file, "p/a.png")
    assert held(admin, bucket) == BODY
    assert proxy.count("PUT") == 7


@pytest.mark.usefixtures("parts")
def test_a_file_that_changes_meanwhile_is_told(monkeypatch, admin, store, bucket, file):
    send = store.client.upload_part

    def meddle(**part):
        file.write_bytes(BODY[::-1])
        return send(**part)

    monkeypatch.setattr(store.client, "upload_part", meddle)
    with pytest.raises(UserError, match=r"a\.png was changed while it was uploaded: run this again"):
        storage.upload(store, bucket, file, "p/a.png")
    assert store.objects(bucket, "p/") == []
    assert not admin.list_multipart_uploads(Bucket=bucket).get("Uploads")


def test_what_did_not_arrive_as_it_was_sent_is_told(monkeypatch, admin, store, bucket, file):
    put = store.client.put_object

    def other_bytes(ContentMD5, Body, Metadata, **about):
        return put(**about, Body=bytes(reversed(Body)))

    monkeypatch.setattr(store.client, "put_object", other_bytes)
    with pytest.raises(UserError, match=r"does not have s3://.*/p/a.png as it was sent: send it again"):
        storage.upload(store, bucket, file, "p/a.png")


def test_what_is_there_already_is_not_sent(store, bucket, file, proxy):
    storage.upload(store, bucket, file, "p/a.png")
    (listed,) = store.objects(bucket, "p/")
    assert not storage.upload(store, bucket, file, "p/a.png", listed)
    file.write_bytes(BODY[::-1])
    assert storage.upload(store, bucket, file, "p/a.png", listed)
    assert proxy.count("PUT") == 2


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (refuse(507, "InsufficientStorage"), "has no room for s3://.*p/a.png: free some"),
        (refuse(507, "XMinioStorageFull"), "has no room for s3://.*p/a.png: free some"),
        (refuse(500, "InternalError"), "fails at s3://.*p/a.png .*: see whether its disk is full"),
        (refuse(403, "AccessDenied"), "give no right to s3://.*p/a.png"),
    ],
)
def test_a_store_that_takes_nothing_is_told(store, bucket, file, proxy, act, sentence):
    proxy.trouble(act, method="PUT")
    with pytest.raises(UserError, match=sentence):
        storage.upload(store, bucket, file, "p/a.png")
    assert proxy.count("PUT") <= fetching.ATTEMPTS


def test_many_files_of_all_sizes_keep_their_order(monkeypatch, admin, store, bucket, tmp_path):
    monkeypatch.setattr(sending, "PART", 100)
    files = []
    for number, size in enumerate((10, 1000, 0, 101, 100)):
        file: Path = tmp_path / f"{number}.png"
        file.write_bytes(os.urandom(size))
        files.append((file, file.name, None))
    list(storage.upload_all(store, bucket, files[:2]))
    listed = {each.key: each for each in store.objects(bucket, "")}
    again = [(file, key, listed.get(key)) for file, key, _ in files]
    assert list(storage.upload_all(store, bucket, again)) == [False, False, True, True, True]
    assert all(held(admin, bucket, key) == file.read_bytes() for file, key, _ in files)


def test_a_body_that_is_changed_on_its_way_is_refused_by_the_store(monkeypatch, store, bucket, file):
    monkeypatch.setattr(sending, "content_md5", lambda body: "AAAAAAAAAAAAAAAAAAAAAA==")
    with pytest.raises(UserError, match="BadDigest|InvalidDigest"):
        storage.upload(store, bucket, file, "p/a.png")
    assert store.objects(bucket, "p/") == []


def test_what_others_have_uploaded_is_known_by_its_etag(admin, store, bucket, file, proxy):
    admin.put_object(Bucket=bucket, Key="p/a.png", Body=file.read_bytes())
    (listed,) = store.objects(bucket, "p/")
    assert storage.upload(store, bucket, file, "p/a.png", listed) is False
    assert proxy.count("PUT") == 0
    # Another file of the same size is sent.
    file.write_bytes(bytes(reversed(file.read_bytes())))
    assert storage.upload(store, bucket, file, "p/a.png", listed) is True
