"""A file of a web server is fetched once, is the one that was meant, or leaves nothing."""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from diffusion_core.config.environment import Environment
from diffusion_core.data.sources import web
from diffusion_core.data.sources.url import Url
from diffusion_core.errors import Unavailable, UserError
from diffusion_core.stages import clean
from tests.data.sources.archives import as_array, as_parquet, as_tar, as_zip
from tests.data.sources.reading import ingested, png, read
from tests.data.sources.web_server import (
    WebServer,
    another_range,
    cut_off,
    status,
    web_server,
    without_length,
    without_ranges,
)
from tests.ports import free_port

DOWNLOADS = Path(".cache/downloads")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(web, "LONGEST_PAUSE", 0.0)
    # A proxy of the environment is not asked.
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with web_server() as server:
        yield server


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


ZIP = as_zip()


def source(server: WebServer, content: bytes = ZIP, name: str = "images.zip", **options) -> Url:
    return Url(server.url(name, content), sha256(content), **options)


FOLDERS = ["cat/a.png", "dog/b.png"]


@pytest.mark.parametrize(
    ("name", "content", "form", "paths"),
    [
        ("images.zip", ZIP, None, FOLDERS),
        ("images.ZIP?download=true", ZIP, None, FOLDERS),
        ("images.tar", as_tar("w"), None, FOLDERS),
        ("images.tgz", as_tar(), None, FOLDERS),
        ("images.tar.xz", as_tar("w:xz"), None, FOLDERS),
        ("train-0.parquet", as_parquet(), None, ["train-0-000000.png", "train-0-000001.png"]),
        ("a%20b.npy", as_array(), None, ["a_b-000000.png", "a_b-000001.png"]),
        ("a.npz", as_array(np.savez), None, ["arr_0-000000.png", "arr_0-000001.png"]),
        ("content", ZIP, "zip", FOLDERS),
        ("a.tar", as_tar("w"), "webdataset", ["cat/a-a.png", "dog/a-b.png"]),
        ("", as_tar(), "tar", FOLDERS),
        (".parquet", as_parquet(), "parquet", ["parquet-000000.png", "parquet-000001.png"]),
    ],
)
def test_a_file_is_fetched_and_read_by_its_suffix_or_as_said(
    server: WebServer, name: str, content: bytes, form: str | None, paths: list[str]
) -> None:
    assert [*read(source(server, content, name, format=form))] == paths
    assert len(server.requests) == 1
    (folder,) = DOWNLOADS.iterdir()
    assert folder.name == sha256(content)
    assert [file.read_bytes() for file in folder.iterdir() if file.name != ".lock"] == [content]


def test_it_is_fetched_once_and_only_what_changed_is_read_again(
    server: WebServer, capsys: pytest.CaptureFixture
) -> None:
    for times, content in ((1, as_tar()), (1, as_tar()), (2, as_tar("w"))):
        images = ingested(kind="url", url=server.url("images.tar.gz", content), sha256=sha256(content))
        assert images == {"cat/a.png": png(1), "dog/b.png": png(2)}
        assert len(server.requests) == times
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith("are new")]
    assert lines == [f"ingest: {new} of 2 images are new" for new in (2, 0, 2)]


def test_a_folder_for_downloads_is_used(server: WebServer, tmp_path: Path) -> None:
    environment = Environment(downloads=tmp_path / "kept")
    assert len(source(server).items(environment)) == 2
    assert [folder.name for folder in (tmp_path / "kept").iterdir()] == [sha256(ZIP)]
    assert not DOWNLOADS.exists()
    del server.files["/images.zip"]
    assert len(Url(f"{server.address}/images.zip", sha256(ZIP)).items(environment)) == 2


def test_what_rots_on_the_disk_is_fetched_again(server: WebServer) -> None:
    assert len(read(source(server))) == 2
    (DOWNLOADS / sha256(ZIP) / "images.zip").write_bytes(ZIP[:-1])
    assert len(read(source(server))) == 2
    assert len(server.requests) == 2


def test_an_interrupted_fetch_is_resumed(server: WebServer) -> None:
    server.failures = [cut_off(0.5)]
    assert len(read(source(server))) == 2
    assert server.requests == [("/images.zip", None), ("/images.zip", f"bytes={len(ZIP) // 2}-")]


def test_a_fetch_that_was_killed_is_resumed(server: WebServer) -> None:
    part = DOWNLOADS / sha256(ZIP) / "images.zip.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(ZIP[:100])
    assert len(read(source(server))) == 2
    assert server.requests == [("/images.zip", "bytes=100-")]
    assert not part.exists()


@pytest.mark.parametrize("left", [b"another version" * 3, ZIP, ZIP + b"more"])
@pytest.mark.parametrize("failure", [None, without_ranges, another_range])
def test_what_lies_there_does_no_harm(server: WebServer, left: bytes, failure) -> None:
    part = DOWNLOADS / sha256(ZIP) / "images.zip.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(left)
    server.failures = [failure] if failure else []
    assert len(read(source(server))) == 2


@pytest.mark.parametrize("code", [408, 429, 500, 503])
def test_a_busy_server_is_asked_again(server: WebServer, code: int) -> None:
    server.failures = [status(code)] * (web.ATTEMPTS - 1)
    assert len(read(source(server))) == 2
    assert len(server.requests) == web.ATTEMPTS


def test_a_server_that_stays_busy_is_unavailable(server: WebServer) -> None:
    server.failures = [status(503)] * web.ATTEMPTS
    with pytest.raises(
        Unavailable, match=r"url is http.*images.zip, whose server .* \(it answers 503\): try again later"
    ):
        read(source(server))


def test_a_server_that_does_not_listen_is_unavailable(server: WebServer) -> None:
    with pytest.raises(Unavailable, match=r"whose server does not send the file \(.+\): try again later"):
        read(Url(f"http://127.0.0.1:{free_port()}/images.zip", "0" * 64))


def test_a_server_that_is_slow_is_unavailable(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "SECONDS_TO_ANSWER", 0.1)

    def silent(handler, content):
        cut_off(0.1)(handler, content)
        handler.wfile.flush()
        time.sleep(0.3)

    server.failures = [silent] * (web.ATTEMPTS + 1)
    with pytest.raises(Unavailable, match="does not send the file"):
        read(source(server))


def test_a_server_that_trickles_is_unavailable(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "SLOW_SECONDS", 0.02)
    monkeypatch.setattr(web, "SLOW_BYTES", 10**6)

    def trickle(handler, content):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        for number in range(8):
            handler.wfile.write(content[number : number + 1])
            time.sleep(0.01)

    server.failures = [trickle] * web.ATTEMPTS
    with pytest.raises(Unavailable, match=r"it sends \d+ bytes in 0 seconds"):
        read(source(server))


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_a_file_that_is_not_there_is_refused(server: WebServer, code: int) -> None:
    server.failures = [status(code)]
    with pytest.raises(UserError, match=rf"url is .*images.zip, whose server answers {code} .*: correct the address"):
        read(source(server))
    assert len(server.requests) == 1


def leftovers() -> list[Path]:
    return [file for file in Path().rglob("*") if file.is_file() and file.name != ".lock"]


def test_another_hash_is_refused_and_nothing_stays(server: WebServer) -> None:
    sentence = (
        f"url is {server.address}/images.zip, whose file has the sha256 {sha256(ZIP)}, where {'0' * 64} is expected:"
        " correct ingest.source.sha256 if you trust this file, else the address"
    )
    with pytest.raises(UserError, match=sentence):
        read(Url(server.url("images.zip", ZIP), "0" * 64))
    assert leftovers() == []
    # It is asked for once: nothing says that a second answer would be another.
    assert len(server.requests) == 1


def test_a_page_in_the_place_of_the_file_is_named(server: WebServer) -> None:
    with pytest.raises(UserError, match=r"has the sha256 [0-9a-f]{64}, and is a web page, where 0{64} is expected"):
        read(Url(server.url("images.zip", b"\n<!DOCTYPE html>Sign in"), "0" * 64))
    assert leftovers() == []


def test_a_file_that_ends_early_without_a_length_is_refused(server: WebServer) -> None:
    server.failures = [without_length]
    with pytest.raises(UserError, match="has the sha256 .* is expected"):
        read(source(server))
    assert leftovers() == []


def test_redirects_are_followed(server: WebServer) -> None:
    server.failures = [
        status(302, Location="/images.zip?token=1"),
        status(307, Location=f"{server.address}/images.zip"),
    ]
    assert len(read(source(server))) == 2
    assert [path for path, _ in server.requests] == ["/images.zip", "/images.zip?token=1", "/images.zip"]


def test_a_ring_of_redirects_ends(server: WebServer) -> None:
    server.failures = [status(301, Location="/images.zip")] * (web.MOST_REDIRECTS + 1)
    with pytest.raises(UserError, match="redirects more than 10 times: correct the address"):
        read(source(server))


@pytest.mark.parametrize("target", ["http://example.com/a.zip", "ftp://127.0.0.1/a.zip", "https://me@host/a.zip"])
def test_a_redirect_to_elsewhere_is_not_followed(server: WebServer, target: str) -> None:
    server.failures = [status(302, Location=f"{target}?secret=1")]
    with pytest.raises(
        UserError, match=rf"whose server redirects to {target.replace('me@', '')}, which is not followed: name another"
    ):
        read(source(server))


def test_a_redirect_from_another_machine_to_this_one_is_not_followed() -> None:
    file = web.WebFile("key", "https://example.com/a.zip", "0" * 64, "")
    with pytest.raises(UserError, match="which is not followed"):
        file._check_redirect(web.httpx.URL("http://127.0.0.1/a.zip"))


def test_a_suffix_that_says_nothing_is_refused(server: WebServer) -> None:
    with pytest.raises(
        UserError, match=r"images.rar, whose end is not one of \.zip \.tar .*: say by ingest.source.for"
    ):
        read(source(server, name="images.rar"))
    assert server.requests == []


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("a.tar", "which is damaged or no such file"), ("a.npz", "which has no image in one of the arrays")],
)
def test_a_file_of_another_format_is_refused(server: WebServer, name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=rf"ingest\.source\.url is .*{name}, {sentence}"):
        read(source(server, name=name))


def test_a_sha256_may_be_in_capitals(server: WebServer) -> None:
    assert len(ingested(kind="url", url=server.url("images.zip", ZIP), sha256=sha256(ZIP).upper())) == 2


def test_what_no_ingest_uses_may_be_removed(server: WebServer) -> None:
    read(source(server))
    found = [each.path for each in clean._downloads(Environment(), before=time.time() + 60)]
    assert found == [DOWNLOADS / sha256(ZIP)]
    assert [*clean._downloads(Environment(), before=time.time() - 60)] == []
