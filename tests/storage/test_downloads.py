"""What was fetched once is not fetched again, by no clone of the project, as long as DIFFUSION_DOWNLOADS is kept."""

import errno
import fcntl
import hashlib
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest

from diffusion_core import storage
from diffusion_core.config.settings import IngestSettings
from diffusion_core.data.raw import PackWriter
from diffusion_core.data.sources import s3
from diffusion_core.errors import UserError
from diffusion_core.stages import ingest
from tests.data.packed import unpacked
from tests.storage.ingests import IMAGES, RAW, contents, ingest_process, wait_for, whole_files
from tests.storage.proxy import refuse, stall


@pytest.fixture
def downloads(tmp_path):
    return tmp_path / "outlives/downloads"


@pytest.fixture
def night(tmp_path, monkeypatch, bucket, environment, downloads, proxy):
    """Ingests in a new and empty project, and returns the images and how many objects were asked for."""
    nights = iter(range(100))

    def night(prefix="pictures", **update):
        project = tmp_path / f"night-{next(nights)}"
        project.mkdir()
        monkeypatch.chdir(project)
        proxy.requests.clear()
        ingest.run(
            IngestSettings.model_validate({"source": {"kind": "s3", "url": f"s3://{bucket}/{prefix}"}}),
            environment.model_copy(update={"downloads": downloads, **update}),
        )
        images = unpacked(RAW)
        assert [file.name for file in Path("data").iterdir()] == ["raw"]
        return images, proxy.count("GET")

    return night


def test_a_second_night_asks_for_the_listing_alone(put, night, proxy, capsys):
    put(IMAGES)
    assert night() == (IMAGES, len(IMAGES))
    first = contents(RAW)
    capsys.readouterr()
    assert night() == (IMAGES, 0)
    assert (len(proxy.requests), proxy.lists()) == (1, 1)
    # New to this clone.
    assert capsys.readouterr().out == "ingest: 4 of 4 images are new\ningest: 4 images in data/raw\n"
    assert contents(RAW) == first


def test_without_the_folder_everything_is_fetched_again(put, night):
    """The premise of the test above."""
    put(IMAGES)
    assert night(downloads=None) == (IMAGES, len(IMAGES))
    assert night(downloads=None) == (IMAGES, len(IMAGES))


def test_a_fetch_leaves_what_is_kept_and_names_it_by_its_sha256(put, night, downloads):
    put(IMAGES)
    night()
    kept = whole_files(downloads)
    assert sorted(file.read_bytes() for file in kept) == sorted(IMAGES.values())
    assert {hashlib.sha256(file.read_bytes()).hexdigest() for file in kept} == {file.suffix[1:] for file in kept}


def test_on_a_file_system_without_links_it_is_the_same(monkeypatch, put, night, downloads):
    def link(*arguments):
        raise OSError(errno.EXDEV, "another file system")

    put(IMAGES)
    monkeypatch.setattr(os, "link", link)
    night()
    assert night() == (IMAGES, 0)
    assert len(whole_files(downloads)) == len(IMAGES)


def test_only_what_is_new_is_fetched(put, night, downloads):
    put(IMAGES)
    night()
    put({"cat/1.png": b"9", "cat/new.png": b"8"})
    assert night() == (IMAGES | {"cat/1.png": b"9", "cat/new.png": b"8"}, 2)
    assert sorted(file.read_bytes() for file in whole_files(downloads)) == sorted([*IMAGES.values(), b"8", b"9"][1:])


@pytest.mark.parametrize("damage", [b"", b"23"])
def test_what_rotted_is_fetched_anew(put, night, downloads, damage):
    put(IMAGES)
    night()
    next(file for file in whole_files(downloads) if file.read_bytes() == IMAGES["cat/2.PNG"]).write_bytes(damage)
    assert night() == (IMAGES, 1)
    assert night() == (IMAGES, 0)


def test_what_the_bucket_no_longer_has_goes(put, night, downloads, admin, bucket):
    put(IMAGES)
    night()
    admin.delete_object(Bucket=bucket, Key="pictures/dog/4.webp")
    (place,) = downloads.iterdir()
    # Of downloads that were killed: in the middle, and before the sha256 was written down.
    (place / ".0a.tmp-1").write_bytes(b"part")
    (place / "0a").write_bytes(b"whole")
    remaining = {path: body for path, body in IMAGES.items() if path != "dog/4.webp"}
    assert night() == (remaining, 0)
    assert sorted(file.read_bytes() for file in place.iterdir() if file.name != ".lock") == sorted(remaining.values())


def test_it_goes_too_when_all_else_is_known_by_the_index(put, night, downloads, admin, bucket, environment, proxy):
    put(IMAGES)
    night()
    admin.delete_object(Bucket=bucket, Key="pictures/dog/4.webp")
    proxy.requests.clear()
    ingest.run(
        IngestSettings.model_validate({"source": {"kind": "s3", "url": f"s3://{bucket}/pictures"}}),
        environment.model_copy(update={"downloads": downloads}),
    )
    assert (len(proxy.requests), len(whole_files(downloads))) == (1, 3)


def test_what_killed_downloads_left_makes_room_first(put, night, downloads, proxy):
    put(IMAGES)
    night()
    (place,) = downloads.iterdir()
    (place / ".0a.tmp-1").write_bytes(b"fills the disk")
    put({"cat/new.png": b"8"})
    proxy.trouble(refuse(403, "AccessDenied"), key="cat/new.png", times=1)
    with pytest.raises(UserError):
        night()
    assert not list(place.glob(".*.tmp-*"))
    assert len(whole_files(place)) == len(IMAGES)


def test_another_clone_goes_on_where_one_was_killed(put, night, tmp_path, bucket, environment, downloads, proxy):
    images = {f"cat/{number}.png": str(number).encode() for number in range(60)}
    put(images)
    proxy.trouble(stall, key="cat/50.png", times=1)
    project = tmp_path / "killed"
    project.mkdir()
    url = f"s3://{bucket}/pictures"
    with ingest_process(project, environment, url, DIFFUSION_DOWNLOADS=str(downloads)) as process:
        wait_for(lambda: len(whole_files(downloads)) == 59)
        process.send_signal(signal.SIGKILL)
    shutil.rmtree(project)
    assert night() == (images, 1)
    assert not list(downloads.rglob(".*.tmp-*"))


def full_disk(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("place", [(PackWriter, "close"), (s3, "keep_only"), (ingest, "write_index")])
def test_an_error_after_all_has_arrived_loses_nothing(
    monkeypatch, tmp_path, put, bucket, environment, downloads, proxy, kept, place
):
    put(IMAGES)
    monkeypatch.chdir(tmp_path)
    settings = IngestSettings.model_validate({"source": {"kind": "s3", "url": f"s3://{bucket}/pictures"}})
    given = environment.model_copy(update={"downloads": downloads if kept else None})
    with monkeypatch.context() as patch:
        patch.setattr(*place, full_disk)
        with pytest.raises(OSError, match="No space left"):
            ingest.run(settings, given)
    assert not RAW.exists()
    proxy.requests.clear()
    ingest.run(settings, given)
    assert unpacked(RAW) == IMAGES
    assert proxy.count("GET") == 0
    assert Path("data/.raw.parts").exists() is False


def test_nor_does_an_error_when_the_new_folder_is_put_in_its_place(
    monkeypatch, tmp_path, put, bucket, environment, proxy
):
    put(IMAGES)
    monkeypatch.chdir(tmp_path)
    settings = IngestSettings.model_validate({"source": {"kind": "s3", "url": f"s3://{bucket}/pictures"}})
    rename = Path.rename

    def fail(file, target):
        if target == RAW:
            full_disk()
        return rename(file, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(OSError, match="No space left"):
            ingest.run(settings, environment)
    proxy.requests.clear()
    ingest.run(settings, environment)
    assert proxy.count("GET") == 0


def test_two_addresses_remove_nothing_of_each_other(put, admin, bucket, night):
    put(IMAGES)
    admin.put_object(Bucket=bucket, Key="others/1.png", Body=b"other")
    assert night() == (IMAGES, 4)
    assert night("others") == ({"1.png": b"other"}, 1)
    assert night() == (IMAGES, 0)
    assert night("others/") == ({"1.png": b"other"}, 0)


def test_who_comes_second_waits_and_fetches_nothing(monkeypatch, put, night, downloads):
    put(IMAGES)
    night()
    (place,) = downloads.iterdir()
    held = os.open(place / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    told = []

    def release():
        told.append("released")
        os.close(held)

    def tell(sentence, **_):
        told.append(sentence)
        threading.Timer(0.3, release).start()

    monkeypatch.setattr("diffusion_core.data.downloads.print", tell, raising=False)
    assert night() == (IMAGES, 0)
    assert told == [f"ingest: waits until another process has fetched into {place}", "released"]


def test_a_store_that_fails_leaves_what_is_kept(monkeypatch, put, night, downloads):
    put(IMAGES)
    night()
    monkeypatch.setattr(storage.Store, "objects", lambda *arguments: [])
    with pytest.raises(UserError, match="where no image lies"):
        night()
    assert len(whole_files(downloads)) == len(IMAGES)
