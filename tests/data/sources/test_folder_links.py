"""A folder's tables, what it leaves out, and its links, which are followed on demand."""

import os
from pathlib import Path

import pytest

from diffusion_core.data.sources import archive
from diffusion_core.data.sources.folder import Folder, image_files
from diffusion_core.errors import UserError
from tests.data.sources.reading import any_date_is_certain, ingested, png, read, told


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one image, beside the project's."""
    folder = tmp_path / "pictures"
    (folder / "cat").mkdir(parents=True)
    (folder / "cat" / "a.png").write_bytes(b"1")
    (tmp_path / "project" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.png").write_bytes(b"2")
    (folder / "deep" / "c.png").write_bytes(b"3")
    return folder


def test_what_is_left_out_is_printed_by_suffix(images: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("a.txt", "b.txt", "c.eps", "README", ".hidden.png", "cat/.DS_Store"):
        (images / name).write_bytes(b"x")
    os.mkfifo(images / "pipe.png")
    (images / "dangling.png").symlink_to("nowhere.png")
    assert read(Folder(images)) == {"cat/a.png": b"1"}
    assert capsys.readouterr().out == (
        "ingest: left out files that are not images: 6 (2 .png, 2 .txt, 1 .eps, 1 without suffix)\n"
    )


def test_links_that_lead_out_are_left_out_and_printed(
    images: Path, elsewhere: Path, capsys: pytest.CaptureFixture
) -> None:
    (images / "folder").symlink_to(elsewhere)
    (images / "b.png").symlink_to(elsewhere / "b.png")
    (images / "inside.png").symlink_to("cat/a.png")
    assert read(Folder(images)) == {"cat/a.png": b"1", "inside.png": b"1"}
    assert capsys.readouterr().out == (
        "ingest: left out links that lead elsewhere: 2; follow_links: true follows them\n"
    )


def test_links_that_lead_out_are_followed_on_demand(
    images: Path, elsewhere: Path, capsys: pytest.CaptureFixture
) -> None:
    (images / "folder").symlink_to(elsewhere)
    (images / "b.png").symlink_to(elsewhere / "b.png")
    (images / "chain.png").symlink_to("b.png")
    found = {"b.png": b"2", "cat/a.png": b"1", "chain.png": b"2", "folder/b.png": b"2", "folder/deep/c.png": b"3"}
    assert read(Folder(images, follow_links=True)) == found
    assert capsys.readouterr().out == ""


def test_each_folder_is_read_once_and_a_folder_of_its_own_keeps_its_path(images: Path, elsewhere: Path) -> None:
    (images / "a_cat").symlink_to("cat")
    (images / "ring").symlink_to(images)
    (images / "cat" / "up").symlink_to("..")
    (images / "first").symlink_to(elsewhere)
    (images / "second").symlink_to(elsewhere / "deep")
    (elsewhere / "back").symlink_to(images)
    (elsewhere / "deep" / "self").symlink_to(".")
    found = {"cat/a.png": b"1", "first/b.png": b"2", "first/deep/c.png": b"3"}
    assert read(Folder(images, follow_links=True)) == found


def test_a_link_to_the_parent_ends(images: Path, elsewhere: Path) -> None:
    (images / "up").symlink_to("..")
    found = {"cat/a.png": b"1", "up/elsewhere/b.png": b"2", "up/elsewhere/deep/c.png": b"3"}
    assert read(Folder(images, follow_links=True)) == found


@pytest.mark.parametrize("target", ["data", "data/raw", "data/raw/d.png"])
def test_a_link_to_what_the_pipeline_writes_is_refused(images: Path, target: str) -> None:
    Path("data/raw").mkdir(parents=True)
    Path("data/raw/d.png").write_bytes(b"4")
    (images / "link.png").symlink_to(Path(target).resolve())
    with pytest.raises(UserError, match=r"ingest.source.path is .*link.png.*, where the pipeline writes: remove the l"):
        Folder(images, follow_links=True).items()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_link_into_what_may_not_be_read_is_refused(images: Path, elsewhere: Path) -> None:
    (images / "link.png").symlink_to(elsewhere / "deep" / "c.png")
    (elsewhere / "deep").chmod(0)
    try:
        with pytest.raises(UserError, match=r"link.png cannot be read"):
            Folder(images, follow_links=True).items()
    finally:
        (elsewhere / "deep").chmod(0o700)


def test_an_upload_sees_no_links_and_counts_tables(images: Path, elsewhere: Path) -> None:
    (images / "folder").symlink_to(elsewhere)
    (images / "labels.csv").write_text("file_name\n")
    found = image_files(images, "upload")
    assert (found.images, found.tables, found.others.total(), found.links) == (
        [images / "cat" / "a.png"],
        [images / "labels.csv"],
        0,
        1,
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", "file_name,label,split\ncat/a.png,tabby,test\n"),
        ("labels.csv", "label,file_name,split\r\ntabby,cat/a.png,test\r\n"),
        ("metadata.jsonl", '{"file_name": "cat/a.png", "label": "tabby", "split": "test"}\n'),
        ("cat/metadata.csv", "file_name,label,split\na.png,tabby,test\n"),
    ],
)
def test_a_table_gives_labels_and_splits(images: Path, capsys: pytest.CaptureFixture, name: str, content: str) -> None:
    (images / name).write_text(content)
    assert told(Folder(images)) == {"cat/a.png": ("tabby", "test")}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("label\ntabby\n", r"labels.csv has no column file_name \(label\): rename one, or add it"),
        ("file_name\nb.png\n", "labels.csv names 1 missing file, as 'b.png': add them"),
        ("file_name\n../a.png\n", "labels.csv names 1 missing file, as '../a.png': add them"),
        ("file_name\n", "labels.csv has no row of 1 image, as 'cat/a.png': add their rows"),
        ("file_name\ncat/a.png\ncat/a.png\n", "names 'cat/a.png' twice: leave one of the two out"),
    ],
)
def test_a_wrong_table_is_refused(images: Path, content: str, sentence: str) -> None:
    (images / "labels.csv").write_text(content)
    with pytest.raises(UserError, match=rf"ingest\.source\.path is .*pictures, where .*{sentence}"):
        Folder(images).items()


def test_a_huge_table_is_refused(images: Path) -> None:
    with (images / "labels.csv").open("wb") as file:
        file.truncate(archive.MOST_BYTES + 1)
    with pytest.raises(UserError, match=r"has 'labels.csv' of 2,147,483,649 bytes, more than .*: take it out"):
        Folder(images).items()


def test_a_huge_file_is_refused(images: Path) -> None:
    with (images / "huge.tif").open("wb") as file:
        file.truncate(archive.MOST_BYTES + 1)
    with pytest.raises(UserError, match=r"has 'huge.tif' of 2,147,483,649 bytes, more than .*: take it out"):
        Folder(images).items()


def test_only_what_changed_is_read_again(
    images: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    any_date_is_certain(monkeypatch)
    (images / "link").symlink_to(elsewhere)
    options = {"kind": "folder", "path": str(images), "follow_links": True}
    assert len(ingested(**options)) == 3
    assert len(ingested(**options)) == 3
    (elsewhere / "b.png").write_bytes(png(4))
    assert ingested(**options)["link/b.png"] == png(4)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith("are new")]
    assert lines == [f"ingest: {new} of 3 images are new" for new in (3, 0, 1)]
