"""`data/raw` holds what the bucket has, and only what is new crosses the network."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_core import storage
from diffusion_core.config.params import load_settings
from diffusion_core.config.settings import IngestSettings, PrepareSettings
from diffusion_core.data.raw import INDEX, read_index
from diffusion_core.data.sources import archive
from diffusion_core.errors import UserError
from diffusion_core.stages import ingest, prepare
from tests.data.encoded import encoded, photograph
from tests.data.packed import pack, unpacked
from tests.flows.repository import CHECKOUT
from tests.storage.ingests import IMAGES, RAW, contents, ingest_process, wait_for, whole_files
from tests.storage.proxy import refuse, stall, then


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fetch(bucket, environment):
    def fetch():
        ingest.run(
            IngestSettings.model_validate({"source": {"kind": "s3", "url": f"s3://{bucket}/pictures"}}), environment
        )
        return unpacked(RAW)

    return fetch


def test_images_come_by_their_paths_below_the_prefix(put, admin, bucket, fetch, proxy, capsys):
    put(IMAGES)
    admin.put_object(Bucket=bucket, Key="pictures2/other.png", Body=b"5")
    assert fetch() == IMAGES
    assert proxy.count("GET") == len(IMAGES)
    assert [file.name for file in Path("data").iterdir()] == ["raw"]
    assert capsys.readouterr().out == "ingest: 4 of 4 images are new\ningest: 4 images in data/raw\n"


def test_a_table_in_the_bucket_names_the_classes(put, fetch, proxy):
    put(IMAGES)
    assert fetch() == IMAGES
    assert {file.label for file in read_index(RAW)} == {None}
    for word in ("ant", "bee"):
        put({"labels.csv": b"file_name,label\n" + b"".join(f"{path},{word}\n".encode() for path in IMAGES)})
        proxy.requests.clear()
        assert fetch() == IMAGES
        assert {file.label for file in read_index(RAW)} == {word}
        # Of the images, nothing is fetched again.
        assert proxy.count("GET") == 1
    put({"labels.csv": b"file_name,label\nnowhere.png,ant\n"})
    with pytest.raises(UserError, match="where labels.csv names 1 missing file, as 'nowhere.png'"):
        fetch()


def test_a_huge_object_is_refused_before_any_is_fetched(put, bucket, fetch, proxy, monkeypatch):
    put(IMAGES)
    most = max(map(len, IMAGES.values()))
    monkeypatch.setattr(archive, "MOST_BYTES", most)
    assert fetch() == IMAGES
    proxy.requests.clear()
    shutil.rmtree("data")
    monkeypatch.setattr(archive, "MOST_BYTES", most - 1)
    with pytest.raises(UserError, match=rf"source.url is s3://{bucket}/pictures/?, which has .* bytes, more than"):
        fetch()
    assert proxy.count("GET") == 0


def test_the_index_is_the_same_for_the_same_objects(put, fetch):
    put(IMAGES)
    fetch()
    first = contents(RAW)
    shutil.rmtree("data")
    fetch()
    assert contents(RAW) == first
    files = read_index(RAW)
    assert [file.path for file in files] == sorted(IMAGES)
    # The stamp is the ETag, here the MD5, behind the digest of the source.
    assert [file.stamp.split()[1] for file in files] == [
        hashlib.md5(IMAGES[file.path], usedforsecurity=False).hexdigest() for file in files
    ]


def test_a_rerun_with_nothing_new_asks_for_the_listing_alone(put, fetch, proxy):
    put(IMAGES)
    fetch()
    before = contents(RAW)
    proxy.requests.clear()
    assert fetch() == IMAGES
    assert (len(proxy.requests), proxy.lists()) == (1, 1)
    assert contents(RAW) == before


def test_without_the_index_everything_would_be_fetched_again(put, fetch, proxy):
    put(IMAGES)
    fetch()
    (RAW / INDEX).unlink()
    proxy.requests.clear()
    assert fetch() == IMAGES
    assert proxy.count("GET") == len(IMAGES)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"[]"])
def test_a_damaged_index_is_no_index(put, fetch, content):
    put(IMAGES)
    fetch()
    (RAW / INDEX).write_bytes(content)
    assert fetch() == IMAGES


def test_only_what_is_new_or_was_replaced_is_fetched(put, admin, bucket, fetch, proxy):
    put(IMAGES)
    fetch()
    put({"cat/1.png": b"9", "cat/new.png": b"8"})
    admin.delete_object(Bucket=bucket, Key="pictures/dog/4.webp")
    proxy.requests.clear()
    expected = IMAGES | {"cat/1.png": b"9", "cat/new.png": b"8"}
    del expected["dog/4.webp"]
    assert fetch() == expected
    assert sorted(each.key for each in proxy.requests if each.key) == ["pictures/cat/1.png", "pictures/cat/new.png"]
    assert [file.path for file in read_index(RAW)] == sorted(expected)


def test_where_nothing_can_be_linked_it_is_copied(monkeypatch, put, fetch, proxy):
    def link(*arguments):
        raise OSError("another file system")

    put(IMAGES)
    fetch()
    proxy.requests.clear()
    monkeypatch.setattr(os, "link", link)
    assert fetch() == IMAGES
    assert proxy.count("GET") == 0


@pytest.mark.parametrize("damage", [b"other bytes", None])
def test_a_pack_that_is_not_as_it_was_written_is_fetched_again(put, fetch, proxy, damage):
    put(IMAGES)
    fetch()
    (pack,) = RAW.glob("*.zip")
    pack.unlink()
    if damage:
        pack.write_bytes(damage)
    proxy.requests.clear()
    assert fetch() == IMAGES
    assert proxy.count("GET") == len(IMAGES)


def test_another_bucket_has_other_objects(put, fetch, admin, environment, proxy):
    put(IMAGES)
    fetch()
    admin.create_bucket(Bucket="another")
    admin.put_object(Bucket="another", Key="cat/1.png", Body=b"1")
    ingest.run(IngestSettings.model_validate({"source": {"kind": "s3", "url": "s3://another"}}), environment)
    assert unpacked(RAW) == {"cat/1.png": b"1"}
    assert proxy.requests[-1].key == "cat/1.png"


def test_what_is_no_image_or_hidden_is_left_out_and_told(put, fetch, capsys):
    put({"cat/1.png": b"1", "notes.txt": b"2", ".thumbs/1.png": b"3", "cat/.1.png": b"4", "cat/figure.eps": b"5"})
    assert fetch() == {"cat/1.png": b"1"}
    assert capsys.readouterr().out.startswith("ingest: left out objects that are hidden or no images: 4\n")


def test_an_empty_prefix_is_told(put, fetch):
    pack(RAW, {"old.png": b"1"})
    before = contents(Path("data"))
    put({"notes.txt": b"1"})
    with pytest.raises(
        UserError, match=r"ingest\.source\.url is s3://bucket-\d+/pictures, where no image lies .*upload"
    ):
        fetch()
    assert contents(Path("data")) == before


HOSTILE = ["../out.png", "a/../../out.png", "a/./b.png", "/etc/x.png", "a//b.png", "a\0b.png", "é" * 130 + ".png"]


@pytest.mark.parametrize("path", HOSTILE)
def test_a_key_that_is_no_path_is_refused(monkeypatch, bucket, fetch, path):
    """The server here would not take such keys; others do."""
    listed = [storage.Object("pictures/fine.png", 1, "e", 0.0), storage.Object(f"pictures/{path}", 1, "e", 0.0)]
    monkeypatch.setattr(storage.Store, "objects", lambda *arguments: listed)
    with pytest.raises(UserError, match=r"ingest\.source\.url: the key .*\.png' in s3://.* is not a path .*: rename"):
        fetch()
    assert not Path("data/raw").exists()
    assert not Path("data/.raw.parts").exists()


def test_a_key_that_is_file_and_folder_is_refused(monkeypatch, bucket, fetch):
    listed = [storage.Object(f"pictures/{path}", 1, "e", 0.0) for path in ("a.png", "a.png/b.png")]
    monkeypatch.setattr(storage.Store, "objects", lambda *arguments: listed)
    with pytest.raises(UserError, match=r"ingest\.source\.url: 'a\.png' in s3://.* is an image and a folder: rename"):
        fetch()


@pytest.mark.parametrize("body", [b"new", None])
def test_what_changes_during_the_fetch_is_told_and_never_mixed(admin, put, bucket, fetch, proxy, body):
    put(IMAGES)

    def change():
        if body is None:
            admin.delete_object(Bucket=bucket, Key="pictures/dog/4.webp")
        else:
            put({"dog/4.webp": body})

    proxy.trouble(then(change), key="LIST", times=1)
    with pytest.raises(UserError, match=r"dog/4\.webp.*: run this again"):
        fetch()
    assert not RAW.exists()
    expected = {path: body if path == "dog/4.webp" else old for path, old in IMAGES.items()}
    assert fetch() == {path: content for path, content in expected.items() if content is not None}


def test_an_error_in_the_middle_leaves_what_was_there_and_what_arrived(put, fetch, proxy):
    put(IMAGES)
    fetch()
    put({f"new/{number}.png": b"5" for number in range(50)})
    proxy.trouble(refuse(403, "AccessDenied"), key="new/49.png")
    with pytest.raises(UserError, match=r"new/49\.png"):
        fetch()
    assert unpacked(RAW) == IMAGES
    assert [file.name for file in Path("data").iterdir() if ".tmp-" in file.name] == []


@pytest.mark.parametrize("staged", [True, False])
def test_a_killed_fetch_goes_on_where_it_was(project, put, bucket, environment, fetch, proxy, staged):
    images = {f"cat/{number}.png": str(number).encode() for number in range(100)}
    put(images)
    proxy.trouble(stall, key="cat/50.png", times=1)
    process = ingest_process(project, environment, f"s3://{bucket}/pictures")
    parts = project / "data/.raw.parts"
    with process:
        wait_for(lambda: len(whole_files(parts)) == 99)
        process.send_signal(signal.SIGKILL)
    assert not RAW.exists()
    if not staged:
        shutil.rmtree(parts)
    else:
        # What rotted meanwhile is not taken.
        whole_files(parts)[0].write_bytes(b"rot")
    proxy.requests.clear()
    assert fetch() == images
    assert proxy.count("GET") == (2 if staged else 100)
    assert [file.name for file in Path("data").iterdir()] == ["raw"]


def test_prepare_sees_the_images(put, fetch):
    put({f"cat/{number}.png": encoded(photograph(8 + number, 8), "PNG") for number in range(12)})
    fetch()
    (RAW / ".DS_Store").write_bytes(b"litter")
    prepare.run(PrepareSettings(image_size=8, color="rgb", validation_fraction=0.3))
    info = json.loads(Path("data/prepared/dataset.json").read_text())
    assert (info["count"], info["quarantined"]) == (12, 0)


@pytest.mark.parametrize("url", ["pictures", "http://b/p", "s3://", "s3://me:canary@bb/p"])
def test_an_address_that_is_none_is_told_before_anything_runs(project, url):
    text = (CHECKOUT / "params.yaml").read_text(encoding="utf-8")
    text = text.replace("kind: digits", f"{{kind: s3, url: '{url}'}}  #").replace("source:\n    ", "source: ")
    (project / "params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(
        UserError, match=r"ingest\.source\.url: .* is not an address in an object store: write s3://"
    ) as raised:
        load_settings()
    assert "canary" not in str(raised.value)


def test_who_does_not_fetch_from_a_store_does_not_load_boto3():
    script = "import sys, diffusion_core.__main__, diffusion_core.config.params; print('boto3' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
