"""What is compared with what."""

import hashlib

import pytest

from diffusion_core.storage.hashes import hashes, matches

MD5, SHA256 = hashlib.md5(b"1").hexdigest(), hashlib.sha256(b"1").hexdigest()


@pytest.mark.parametrize(
    ("etag", "answer", "wanted"),
    [
        (MD5, {}, ["sha256", "md5"]),
        (MD5, {"ServerSideEncryption": "AES256"}, ["sha256", "md5"]),
        (MD5, {"ServerSideEncryption": "aws:kms"}, ["sha256"]),
        (MD5, {"SSECustomerAlgorithm": "AES256"}, ["sha256"]),
        (f"{MD5}-3", {}, ["sha256"]),
        ("0x8DC", {}, ["sha256"]),
        (MD5, {"Metadata": {"sha256": SHA256}}, ["sha256"]),
        (MD5, {"Metadata": {"sha256": "what somebody else means by it"}}, ["sha256", "md5"]),
    ],
)
def test_an_etag_is_compared_where_it_is_a_hash_and_there_is_no_better_one(etag, answer, wanted):
    assert hashes(etag, answer) == wanted


@pytest.mark.parametrize("body", [b"1", b"2"])
@pytest.mark.parametrize("answer", [{}, {"Metadata": {"Sha256": SHA256}}])
def test_a_hash_that_differs_is_told_apart(body, answer):
    digests = {name: hashlib.new(name, body).hexdigest() for name in hashes(MD5, answer)}
    assert matches(MD5, answer, digests) == (body == b"1")


def test_where_the_store_tells_no_hash_there_is_nothing_to_compare():
    assert matches(f"{MD5}-3", {}, {"sha256": SHA256})
