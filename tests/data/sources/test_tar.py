"""A tar file is read in its order, and none of its entries does harm."""

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest

from diffusion_core.config.environment import Environment
from diffusion_core.data.sources import archive
from diffusion_core.data.sources.tar import Tar
from diffusion_core.errors import UserError
from tests.data.sources.reading import any_date_is_certain, ingested, png, read, told

IMAGES = {"dog/b.png": png(1), "cat/a.JPG": b"2", "cat/c.png": b"3" * 1024}
TABLE = b"file_name,label,split\ndog/b.png,hound,train\ncat/a.JPG,tabby,test\ncat/c.png,tabby,\n"


def entry(name: str, content: bytes = b"", **fields) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def write(path: Path, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w", **options) -> Path:
    with tarfile.open(path, mode, **options) as file:
        for info, content in members:
            file.addfile(info, io.BytesIO(content))
    return path


def images(path: Path, mode: str = "w", prefix: str = "") -> Path:
    return write(path, *(entry(prefix + name, content) for name, content in IMAGES.items()), mode=mode)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("prefix", ["", "./"])
def test_images_keep_their_bytes_paths_and_order(
    tmp_path: Path, mode: str, prefix: str, capsys: pytest.CaptureFixture
) -> None:
    # The suffix says nothing of the compression.
    source = Tar(images(tmp_path / "images.tar", mode, prefix))
    assert [*read(source).items()] == [*IMAGES.items()]
    assert set(told(source).values()) == {(None, None)}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_are_read_in_each_format(tmp_path: Path, format: int) -> None:
    name = f"{'d' * 90}/{'é' * 30 if format != tarfile.USTAR_FORMAT else 'e' * 30}.png"
    source = Tar(write(tmp_path / "a.tar", entry(name, b"1"), format=format))
    assert read(source) == {name: b"1"}


def test_an_archive_with_empty_files_is_decompressed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = [entry(f"{each:03d}.png", b"x" * (each % 2)) for each in range(40)]
    source = Tar(write(tmp_path / "a.tgz", *members, mode="w:gz"))
    monkeypatch.setattr(gzip.GzipFile, "rewind", lambda self: pytest.fail("read again"))
    assert len(read(source)) == 40


def test_some_images_alone_are_read(tmp_path: Path) -> None:
    source = Tar(images(tmp_path / "a.tar"))
    items = source.items()
    assert [*source.contents(items[1:2], items)] == [b"2"]
    (tmp_path / "a.tar").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        source.contents([], items)


def test_a_table_gives_labels_and_splits(tmp_path: Path) -> None:
    members = [entry("labels.csv", TABLE), *(entry(name, content) for name, content in IMAGES.items())]
    source = Tar(write(tmp_path / "a.tar.gz", *members, mode="w:gz"))
    assert told(source) == {
        "dog/b.png": ("hound", "train"),
        "cat/a.JPG": ("tabby", "test"),
        "cat/c.png": ("tabby", None),
    }


def test_what_is_left_out_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write(
        tmp_path / "a.tar",
        entry("cat", type=tarfile.DIRTYPE),
        entry("cat/a.png", b"1"),
        entry("cat/._a.png", b"2"),
        entry(".hidden/a.png", b"3"),
        entry("notes.txt", b"4"),
        entry("README", b"4"),
        entry("cat/link.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        entry("cat/hard.png", type=tarfile.LNKTYPE, linkname="cat/a.png"),
        entry("cat/pipe.png", type=tarfile.FIFOTYPE),
        entry("cat/null.png", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        entry("cat/disk.png", type=tarfile.BLKTYPE),
    )
    assert read(Tar(path)) == {"cat/a.png": b"1"}
    assert capsys.readouterr().out == (
        "ingest: left out entries that are not files: 5 (2 devices or unknown, 2 links, 1 pipes)\n"
        "ingest: left out files that are hidden or no images: 4 (2 .png, 1 .txt, 1 without suffix)\n"
    )


@pytest.mark.parametrize(
    "name", ["../a.png", "/a.png", "cat/../../a.png", "cat//a.png", f"{'x' * 300}.png", "cat/\udcff.png"]
)
def test_a_name_that_is_no_path_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "a.tar", entry("b.png", b"1"), entry(name, b"1"), format=tarfile.GNU_FORMAT)
    with pytest.raises(
        UserError, match=r"ingest.source.path is .*a\.tar, which has .* not a path of a file, so rename"
    ):
        Tar(path).items()


def test_a_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", entry("a.png", b"1"), entry("./a.png", b"2"))
    with pytest.raises(UserError, match="'a.png' twice: rename one of the two"):
        Tar(path).items()


def test_an_archive_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.tar, which holds no image \(.*\.png.*\): add some"):
        Tar(write(tmp_path / "a.tar", entry("a.txt", b"1"))).items()


def test_a_table_that_names_other_files_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", entry("a.png", b"1"), entry("labels.csv", TABLE))
    with pytest.raises(UserError, match=r"labels.csv names 3 missing files"):
        Tar(path).items()


@pytest.mark.parametrize(
    ("path", "problem"),
    [("missing.tar", "No such file"), (".", "Is a directory"), ("a.tar/b.tar", "Not a directory")],
)
def test_a_path_of_no_file_is_refused(tmp_path: Path, path: str, problem: str) -> None:
    images(tmp_path / "a.tar")
    with pytest.raises(UserError, match=rf"ingest.source.path is .*, which cannot be read \({problem}"):
        Tar(tmp_path / path).items()


def test_a_path_of_an_unknown_user_is_refused() -> None:
    with pytest.raises(UserError, match="correct it in params.yaml"):
        Tar(Path("~nobody-of-this-name/a.tar")).items()


def whole(mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for name, content in IMAGES.items():
            tar.addfile(*((each := entry(name, content))[0], io.BytesIO(each[1])))
    return file.getvalue()


def negative(size: int = -1024, **fields) -> bytes:
    """Return a header whose size tarfile reads as a negative number."""
    header = bytearray(entry("a.png", **fields)[0].tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" + (256**11 + size).to_bytes(11, "big")
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * 32)
    return bytes(header)


def pax(records: bytes, size: int | None = None) -> bytes:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(records) if size is None else size
    return info.tobuf(tarfile.GNU_FORMAT) + records.ljust(-(-len(records) // 512) * 512, b"\0")


DAMAGED = {
    "empty": b"",
    "a page": b"<!DOCTYPE html><html>not here</html>",
    "text of a block": b"x" * 512,
    "within a header": whole()[:700],
    "within an image": whole()[:1500],
    "between two entries": whole()[:1024],
    "a header overwritten": whole()[:1024] + b"\xff" * 100 + whole()[1124:],
    "two joined": whole() + whole(),
    "within gzip": whole("w:gz")[:-30],
    "gzip without checksum": whole("w:gz")[:-8],
    "gzip with another checksum": whole("w:gz")[:-8] + b"12345678",
    "gzip overwritten": whole("w:gz")[:60] + b"\xff" * 9 + whole("w:gz")[69:],
    "within bzip2": whole("w:bz2")[:-30],
    "bzip2 overwritten": whole("w:bz2")[:60] + b"\xff" * 9 + whole("w:bz2")[69:],
    "within xz": whole("w:xz")[:-30],
    "xz overwritten": whole("w:xz")[:60] + b"\xff" * 9 + whole("w:xz")[69:],
    "gzip of a page": gzip.compress(b"<html>"),
    "a negative size": negative() + whole(),
    "a negative size later": whole()[:1024] + negative() + whole()[1024:],
    "a negative size by pax": pax(b"17 size=-0001024\n") + whole(),
    "a negative pax header": negative(type=tarfile.XHDTYPE) + whole(),
    "a huge pax header": gzip.compress(pax(b"", 2**40) + bytes(2**24)),
    "a huge long name": gzip.compress(
        entry("x", type=tarfile.GNUTYPE_LONGNAME, size=2**40)[0].tobuf(tarfile.GNU_FORMAT) + bytes(2**24)
    ),
    "nested pax headers": pax(b"9 a=b\n   ") * 3000 + whole(),
    "a sparse map without end": pax(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n") + entry("a.png")[0].tobuf(),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damage_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tar, which is damaged or no such file \(.*\): bring it again"):
        Tar(tmp_path / "a.tar").items()


def test_zstd_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(600))
    with pytest.raises(UserError, match="compressed with zstd: compress it with gzip or xz instead"):
        Tar(tmp_path / "a.tar").items()


@pytest.mark.parametrize("name", ["a.png", "labels.csv"])
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, name: str) -> None:
    with (tmp_path / "a.tar").open("wb") as file:
        size = archive.MOST_BYTES + 1
        file.write(entry("b.png")[0].tobuf() + entry(name, size=size)[0].tobuf(tarfile.GNU_FORMAT))
        # A hole in the file, which needs no room on the disk.
        file.truncate(1024 + (size // 512 + 3) * 512)
    with pytest.raises(UserError, match=rf"'{name}' of 2,147,483,649 bytes, more than 2,147,483,648: take it out"):
        Tar(tmp_path / "a.tar").items()


def test_a_bomb_by_its_content_needs_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MOST_BYTES", 2**20)
    path = write(tmp_path / "a.tgz", entry("a.png", bytes(2**22)), mode="w:gz")
    assert path.stat().st_size < 2**14
    with pytest.raises(UserError, match="take it out"):
        Tar(path).items()


def test_sparse_files_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    header = entry("hole.png", type=tarfile.GNUTYPE_SPARSE)[0].tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(header + whole())
    assert read(Tar(tmp_path / "a.tar")) == IMAGES
    assert "entries that are not files: 1 (1 sparse files)" in capsys.readouterr().out


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    source = Tar(images(tmp_path / "a.tar"))
    items = source.items()
    write(tmp_path / "a.tar", entry("dog/b.png", IMAGES["dog/b.png"]), entry("cat/a.JPG", b"longer"))
    with pytest.raises(UserError, match="which changed while it was read: run the stage again"):
        list(source.contents(items, items))


def test_only_a_changed_file_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    any_date_is_certain(monkeypatch)
    images(tmp_path / "a.tar")
    assert ingested(kind="tar", path="a.tar") == IMAGES
    assert ingested(kind="tar", path="a.tar") == IMAGES
    write(tmp_path / "a.tar", entry("e.png", b"5"))
    assert ingested(kind="tar", path="a.tar") == {"e.png": b"5"}
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith("are new")]
    assert lines == [f"ingest: {new} images are new" for new in ("3 of 3", "0 of 3", "1 of 1")]


def test_a_file_written_just_now_has_no_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Tar(images(tmp_path / "a.tar"))
    assert {item.stamp for item in source.items(Environment())} == {None}
    any_date_is_certain(monkeypatch)
    before = [item.stamp for item in source.items(Environment())]
    assert len({*before}) == len(IMAGES)
    # A change that leaves size and date.
    date = (tmp_path / "a.tar").stat().st_mtime_ns
    with (tmp_path / "a.tar").open("r+b") as file:
        file.seek(512)
        file.write(b"\x88")
    os.utime(tmp_path / "a.tar", ns=(date, date))
    assert not {*before} & {item.stamp for item in source.items(Environment())}
