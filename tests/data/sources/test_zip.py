"""Images in a zip file keep paths and bytes; what is no image is left out; what is hostile or damaged is refused."""

import stat
import struct
import tracemalloc
import zipfile
import zlib

import pytest

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import IngestSettings
from diffusion_core.data.sources import archive
from diffusion_core.data.sources import zip as zips
from diffusion_core.data.sources.zip import Zip
from diffusion_core.errors import UserError
from diffusion_core.stages import ingest
from tests.data.packed import unpacked

IMAGES = {"cat/a.png": b"11", "cat/deep/ü.JPG": b"222", "dog/b.webp": b"33333", "top.png": b""}
WAYS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "pictures.zip"


def write(file, entries, way=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(file, "w", way) as archive:
        for name, content in entries.items() if isinstance(entries, dict) else entries:
            archive.writestr(name, content)


def read(file):
    source = Zip(file)
    items = source.items()
    return {item.path: body for item, body in zip(items, source.contents(items, items, None, None), strict=True)}


def is_refused(file, sentence):
    with pytest.raises(UserError, match=f"^ingest.source.path is {file}, {sentence}"):
        read(file)


@pytest.mark.parametrize("way", WAYS)
def test_images_keep_their_paths_and_bytes(file, way):
    write(file, IMAGES, way)
    assert read(file) == IMAGES
    assert [(item.path, item.size) for item in Zip(file).items()] == [(path, len(IMAGES[path])) for path in IMAGES]


def test_the_bytes_come_in_the_order_asked_for(file):
    write(file, IMAGES)
    items = Zip(file).items()
    assert list(Zip(file).contents(items[::-2], items, None, None)) == [IMAGES[item.path] for item in items[::-2]]


def test_what_is_no_image_or_hidden_is_left_out_and_told_by_suffix(file, capsys):
    others = ("cat/notes.txt", "b.TXT", "LICENSE", ".hidden.png", "cat/.thumbs/a.png", "__MACOSX/cat/._a.png", "x.eps")
    write(file, IMAGES | dict.fromkeys(others, b"1") | {"empty/": b""})
    assert read(file) == IMAGES
    assert capsys.readouterr().out == (
        "ingest: left out files that are hidden or no images: 7 (3 .png, 2 .txt, 1 .eps, 1 without suffix)\n"
    )


def test_links_are_left_out(file):
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    usual = zipfile.ZipInfo("usual.png")
    usual.external_attr = (stat.S_IFREG | 0o644) << 16
    write(file, [(link, "/etc/passwd"), (usual, "1"), ("top.png", "2")])
    assert read(file) == {"top.png": b"2", "usual.png": b"1"}


@pytest.mark.parametrize(
    "name", ["../out.png", "a/../../out.png", "a/./b.png", "/etc/x.png", "a//b.png", "é" * 126 + ".png"]
)
def test_a_name_that_is_no_path_is_refused(file, name):
    write(file, IMAGES | {name: b"1"})
    with pytest.raises(UserError, match=r"ingest\.source\.path is .*zip, which has .*: .*rename it"):
        read(file)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(file):
    write(file, [*IMAGES.items(), ("cat/a.png", b"other")])
    is_refused(file, "which has 'cat/a.png' twice: rename one of the two")


def test_a_zip_without_images_is_refused(file):
    write(file, {"notes.txt": b"1", "cat/": b""})
    is_refused(file, r"which holds no image \(.*\.png.*\): add some")


def test_a_file_that_is_missing_or_a_folder_is_told(file):
    is_refused(file, r"which cannot be read \(No such file or directory\): correct it")
    file.mkdir()
    is_refused(file, r"which cannot be read \(Is a directory\): correct it")


@pytest.mark.parametrize("content", [b"", b"no zip at all", b"PK\x05\x06"])
def test_what_is_no_zip_is_told(file, content):
    file.write_bytes(content)
    is_refused(file, r"which is damaged or no such file \(.*\): bring it again")


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_a_zip_that_was_cut_is_told(file, cut):
    write(file, IMAGES)
    file.write_bytes(file.read_bytes()[:-cut])
    is_refused(file, "which is damaged or no such file")


def test_bytes_whose_checksum_is_wrong_are_told(file):
    write(file, {"a.png": b"the bytes of an image"}, zipfile.ZIP_STORED)
    file.write_bytes(file.read_bytes().replace(b"the bytes", b"the bites"))
    is_refused(file, r"which is damaged or no such file \(Bad CRC-32 for file 'a.png'\)")


def test_an_encrypted_zip_is_told(file):
    write(file, {"a.png": b"1"})
    content = bytearray(file.read_bytes())
    # Bit 0 of the flags, in the header before the bytes and in the list at the end.
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    file.write_bytes(content)
    is_refused(file, r"which is damaged or no such file \(.*encrypted.*\)")


@pytest.mark.parametrize("way", WAYS)
def test_a_zip_with_any_byte_changed_gives_the_bytes_or_one_sentence(file, way, capsys):
    images = {f"cät/{number}.png": bytes(range(200)) + bytes([number]) for number in range(2)}
    table = "file_name,label\n" + "".join(f"{path},cat\n" for path in images)
    write(file, images | {"labels.csv": table}, way)
    content = file.read_bytes()
    refused = 0
    for position in range(0, len(content), 2):
        for change in (1, 0x84):
            damaged = bytearray(content)
            damaged[position] ^= change
            file.write_bytes(damaged)
            try:
                found = read(file)
            except UserError:
                refused += 1
            else:
                # A name may have changed, or an image be one no more; its bytes have not.
                assert {*found.values()} <= {*images.values()}, position
    assert refused > len(content) / 2


def with_size(content, size):
    """Return a zip of one entry that says it has so many bytes."""
    content = bytearray(content)
    struct.pack_into("<I", content, 22, size)
    struct.pack_into("<I", content, content.index(b"PK\x01\x02") + 24, size)
    return bytes(content)


def test_an_entry_that_no_image_can_be_is_refused_before_it_is_read(file):
    write(file, {"a.png": b"1"})
    file.write_bytes(with_size(file.read_bytes(), 3 * 10**9))
    is_refused(file, "which has 'a.png' of 3,000,000,000 bytes, more than 2,147,483,648: take it out")


@pytest.mark.parametrize("name", ["a.png", "labels.csv"])
def test_so_is_a_real_one(file, name, monkeypatch):
    write(file, {"b.png": b"1", name: bytes(10**6 + 1)})
    monkeypatch.setattr(archive, "MOST_BYTES", 10**6)
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("it was read"))
    is_refused(file, f"which has '{name}' of 1,000,001 bytes")


def test_an_entry_of_exactly_so_many_bytes_is_not(file, monkeypatch):
    monkeypatch.setattr(archive, "MOST_BYTES", 10**6)
    write(file, {"a.png": bytes(10**6)})
    assert read(file) == {"a.png": bytes(10**6)}


def test_an_entry_that_is_larger_than_it_says_takes_no_memory_and_is_told(file):
    whole = 2**26
    write(file, {"a.png": bytes(whole)})
    file.write_bytes(with_size(file.read_bytes(), 100))
    tracemalloc.start()
    try:
        is_refused(file, r"which is damaged or no such file \(Bad CRC-32")
        assert tracemalloc.get_traced_memory()[1] < whole / 64
        # The control.
        tracemalloc.reset_peak()
        zlib.decompress(zlib.compress(bytes(whole)))
        assert tracemalloc.get_traced_memory()[1] >= whole
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("labels.csv", "file_name,label\na.png,cat\nsub/b.png,dog\n"),
        ("metadata.csv", "label,text,file_name\ncat,x,a.png\ndog,y,sub/b.png\n"),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "label": "cat"}\n\n{"file_name": "sub/b.png", "label": "dog", "text": [1]}\n',
        ),
    ],
)
def test_a_table_names_the_classes_and_is_not_left_out(file, capsys, name, table):
    write(file, {"a.png": b"1", "sub/b.png": b"2", name: table})
    assert [(item.path, item.label, item.split) for item in Zip(file).items()] == [
        ("a.png", "cat", None),
        ("sub/b.png", "dog", None),
    ]
    assert capsys.readouterr().out == ""


def test_a_table_that_names_missing_files_is_told(file):
    write(file, {"a.png": b"1", "labels.csv": "file_name,label\na.png,cat\nb.png,dog\nc.png,dog\n"})
    is_refused(file, "where labels.csv names 2 missing files, as 'b.png'")


@pytest.fixture
def bring(tmp_path, monkeypatch, file):
    """Ingest the zip; return what `data/raw` holds and which entries were read."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    opened = []
    original = zips._bytes

    def reading(archive, info):
        opened.append(info.filename)
        return original(archive, info)

    monkeypatch.setattr(zips, "_bytes", reading)

    def bring():
        opened.clear()
        ingest.run(IngestSettings.model_validate({"source": {"kind": "zip", "path": str(file)}}), Environment())
        return unpacked(ingest.RAW), list(opened)

    return bring


def test_only_changed_entries_are_read_again(file, bring):
    write(file, IMAGES)
    assert bring() == (IMAGES, [*IMAGES])
    assert bring() == (IMAGES, [])
    changed = IMAGES | {"cat/a.png": b"12", "new.png": b"4"}
    del changed["dog/b.webp"]
    # Another file with other dates and another compression, in which one entry is new and one has other bytes.
    write(file, changed, zipfile.ZIP_LZMA)
    assert bring() == (changed, ["cat/a.png", "new.png"])


def test_an_error_in_the_middle_leaves_what_was_there(file, bring):
    write(file, IMAGES)
    bring()
    write(file, {f"{number}.png": b"the bytes" for number in range(9)}, zipfile.ZIP_STORED)
    file.write_bytes(file.read_bytes().replace(b"the bytes", b"the bites", 7))
    with pytest.raises(UserError, match="Bad CRC"):
        bring()
    assert unpacked(ingest.RAW) == IMAGES
    assert [each.name for each in ingest.RAW.parent.iterdir()] == ["raw"]


def test_labels_change_without_reading_images_again(file, bring):
    table = "file_name,label\na.png,cat\n"
    write(file, {"a.png": b"1", "labels.csv": table})
    bring()
    write(file, {"a.png": b"1", "labels.csv": table.replace("cat", "dog")})
    assert bring() == ({"a.png": b"1"}, ["labels.csv"])
    assert [each.label for each in ingest.read_index(ingest.RAW)] == ["dog"]


def test_the_path_may_begin_at_home(tmp_path, monkeypatch, file):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(file, IMAGES)
    assert [item.path for item in Zip(type(file)("~/pictures.zip")).items()] == [*IMAGES]


def test_a_link_that_has_the_name_of_a_file_is_not_read_for_it(file):
    link = zipfile.ZipInfo("1.png")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with pytest.warns(UserWarning, match="Duplicate name"):
        write(file, [("1.png", b"image"), (link, "/etc/passwd")])
    assert read(file) == {"1.png": b"image"}
