"""A zip file's images are read as they are, and nothing of it gets to the disk."""

import stat
import zipfile
from pathlib import Path

import pytest

from diffusion_core.data.sources import archive
from diffusion_core.data.sources.zip import Zip
from diffusion_core.errors import UserError


def written(file: Path, entries: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(file, "w", kind) as made:
        for name, content in entries.items():
            made.writestr(name, content)
    return file


def read(file: Path) -> dict[str, bytes]:
    source = Zip(file)
    items = source.items()
    return dict(zip([item.path for item in items], source.contents(items), strict=True))


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info


def test_images_keep_paths_and_bytes_and_the_rest_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    images = {"cat/2.png": b"22", "cat/1.JPG": b"1", "dog/ü.webp": b"333"}
    others = {"notes.txt": b"", "cat/.hidden.png": b"", "__MACOSX/cat/._1.png": b"", "folder/": b""}
    file = written(tmp_path / "a.zip", images | others)
    assert read(file) == images
    assert [*read(file)] == sorted(images)
    assert capsys.readouterr().out.startswith(
        "ingest: left out 3 files that are hidden or no images (2 .png, 1 .txt)\n"
    )


def test_a_link_is_left_out_also_where_a_file_has_its_name(tmp_path: Path) -> None:
    file = written(tmp_path / "a.zip", {"1.png": b"image"})
    with zipfile.ZipFile(file, "a") as made:
        made.writestr(link("2.png"), "/etc/passwd")
        with pytest.warns(UserWarning, match="Duplicate name"):
            made.writestr(link("1.png"), "/etc/passwd")
    assert read(file) == {"1.png": b"image"}


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "a.zip", {"1.png": b"one"})
    with zipfile.ZipFile(file, "a") as made, pytest.warns(UserWarning, match="Duplicate name"):
        made.writestr("1.png", b"two")
    with pytest.raises(UserError, match=r"which has '1\.png' twice: rename"):
        read(file)


@pytest.mark.parametrize("name", ["../1.png", "a/../../1.png", "/etc/1.png", "a//1.png", "é" * 130 + ".png"])
def test_a_name_that_is_no_path_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"that is not a path of a file, so rename it"):
        read(written(tmp_path / "a.zip", {name: b"1"}))


def test_an_entry_that_is_too_large_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "a.zip", {"1.png": bytes(10**6)})
    assert read(file) == {"1.png": bytes(10**6)}
    monkeypatch.setattr(archive, "MOST_BYTES", 10**6 - 1)
    with pytest.raises(UserError, match=r"which has '1\.png' of 1,000,000 bytes, more than 999,999: take it out"):
        read(file)


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_is_told_wherever_it_is(tmp_path: Path, kind: int) -> None:
    content = written(tmp_path / "a.zip", {f"{n}.png": bytes(range(256)) * 3 for n in range(3)}, kind).read_bytes()
    told = 0
    for place in range(0, len(content), 3):
        changed = bytearray(content)
        changed[place] ^= 0xFF
        (tmp_path / "b.zip").write_bytes(changed)
        try:
            read(tmp_path / "b.zip")
        except UserError:
            told += 1
    assert told > 50


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK"])
def test_what_is_no_zip_file_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.zip, which is damaged or no such file"):
        read(tmp_path / "a.zip")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ingest\.source\.path is .*a\.zip"):
        read(tmp_path / "a.zip")


def test_a_table_gives_labels_and_one_of_missing_files_is_refused(tmp_path: Path) -> None:
    table = b"file_name,label,split\n1.png,cat,train\n2.png,dog,test\n"
    file = written(tmp_path / "a.zip", {"1.png": b"1", "2.png": b"2", "metadata.csv": table})
    assert [(item.label, item.split) for item in Zip(file).items()] == [("cat", "train"), ("dog", "test")]
    with pytest.raises(UserError, match=r"metadata\.csv names 1 files that are not there, as '2\.png'"):
        read(written(tmp_path / "b.zip", {"1.png": b"1", "metadata.csv": table}))
