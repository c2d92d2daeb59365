"""Samples of WebDataset are images with labels, and tar files are never classes."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from diffusion_core.data.labels import classes, places
from diffusion_core.data.sources import archive
from diffusion_core.data.sources.webdataset import MOST_LABEL_BYTES, WebDataset
from diffusion_core.errors import UserError
from tests.data.sources.reading import any_date_is_certain, ingested, read, told


def write(path: Path, *members: tuple[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


SAMPLES = [("b.cls", b"3\n"), ("b.jpg", b"1"), ("a.PNG", b"2"), ("a.cls", b"tabby cat"), ("a.txt", b"a caption")]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_images_keep_their_bytes_and_order_and_have_labels(
    tmp_path: Path, mode: str, capsys: pytest.CaptureFixture
) -> None:
    source = WebDataset(write(tmp_path / "train-0.tar", *SAMPLES, mode=mode))
    assert [*read(source).items()] == [("train-0-b.jpg", b"1"), ("train-0-a.PNG", b"2")]
    assert [*told(source).values()] == [("3", "train"), ("tabby cat", "train")]
    line = "ingest: left out files that are neither images nor their labels: 1 (1 .txt)"
    assert {*capsys.readouterr().out.splitlines()} == {line}


@pytest.mark.parametrize(
    ("content", "label"),
    [
        ({"label": "cat"}, "cat"),
        ({"label": 3, "caption": "a cat"}, "3"),
        ({"label": None}, None),
        ({"label": ""}, None),
        ({"caption": "a cat"}, None),
        ([1, 2], None),
    ],
)
def test_json_has_a_label(tmp_path: Path, content: object, label: str | None) -> None:
    source = WebDataset(write(tmp_path / "a.tar", ("x.json", json.dumps(content).encode()), ("x.jpg", b"1")))
    assert told(source) == {"a-x.jpg": (label, None)}


def test_the_class_comes_before_json(tmp_path: Path) -> None:
    source = WebDataset(write(tmp_path / "a.tar", ("x.json", b'{"label": 1}'), ("x.jpg", b"1"), ("x.cls", b"2")))
    assert told(source) == {"a-x.jpg": ("2", None)}


def test_a_folder_is_read_in_order(tmp_path: Path) -> None:
    for number, name in enumerate(["train/1", "train/0", "val/0"]):
        write(tmp_path / f"{name}.tar", ("x.jpg", b"%d" % number), ("y.jpg", b"y"))
    source = WebDataset(tmp_path)
    assert [*read(source).items()] == [
        *(("train-0-x.jpg", b"1"), ("train-0-y.jpg", b"y"), ("train-1-x.jpg", b"0"), ("train-1-y.jpg", b"y")),
        *(("val-0-x.jpg", b"2"), ("val-0-y.jpg", b"y")),
    ]
    assert [split for _, split in told(source).values()] == ["train"] * 4 + ["val"] * 2


def test_tar_files_are_no_classes_and_folders_in_them_are(tmp_path: Path) -> None:
    for name in ("0", "1"):
        write(tmp_path / f"flat/{name}.tar", ("x.jpg", b"1"))
        write(tmp_path / f"deep/{name}.tar", ("cat/x.jpg", b"1"), ("dog/x.jpg", b"1"))
    found = {}
    for folder in ("flat", "deep"):
        paths = [*told(WebDataset(tmp_path / folder))]
        found[folder] = classes(places(paths, [None] * len(paths), [None] * len(paths), "auto"), [])
    assert found == {"flat": [], "deep": ["cat", "dog"]}


def test_some_images_alone_are_read(tmp_path: Path) -> None:
    # The name of one file begins as that of another.
    for name in ("a", "a-b", "c"):
        write(tmp_path / f"{name}.tar", *((f"{each}.jpg", f"{name}{each}".encode()) for each in range(3)))
    source = WebDataset(tmp_path)
    items = source.items()
    everything = [f"{name}{each}".encode() for name in ("a-b", "a", "c") for each in range(3)]
    assert [*source.contents(items, items)] == everything
    for wanted in ([0], [8], [1, 4, 7], [2, 3], [5, 6], []):
        assert [*source.contents([items[each] for each in wanted], items)] == [everything[each] for each in wanted]


def test_one_of_several_images_is_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", ("x.input.jpg", b"1"), ("x.mask.png", b"2"), ("x.cls", b"3"))
    with pytest.raises(
        UserError, match=r"a\.tar, where the sample x has the images input.jpg and mask.png: say by inge"
    ):
        WebDataset(path).items()
    assert read(WebDataset(path, image="Input.jpg")) == {"a-x.input.jpg": b"1"}
    assert told(WebDataset(path, image="input.jpg")) == {"a-x.input.jpg": ("3", None)}


def test_what_is_left_out_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write(
        tmp_path / "images" / "a.tar",
        ("x.jpg", b"1"),
        ("y.jpg", b"2"),
        ("x.cls", b"apart from its image"),
        ("._x.jpg", b"3"),
        ("README", b"4"),
    )
    with tarfile.open(path, "a") as file:
        link = tarfile.TarInfo("z.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    (path.parent / "sizes.json").write_text("{}")
    assert told(WebDataset(path.parent)) == {"a-x.jpg": (None, None), "a-y.jpg": (None, None)}
    assert capsys.readouterr().out == (
        "ingest: left out files that are not *.tar: 1 (1 .json)\n"
        "ingest: left out entries that are not files: 1 (1 links)\n"
        "ingest: left out files that are neither images nor their labels: 3"
        " (1 .jpg, 1 labels without an image, 1 without suffix)\n"
    )


@pytest.mark.parametrize("name", ["../x.jpg", "/x.jpg", "a//x.jpg", "a/../x.jpg"])
def test_a_name_that_is_no_path_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="that is not a path of a file, so rename it"):
        WebDataset(write(tmp_path / "a.tar", (name, b"1"))).items()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.cls", b"\xff"),
        ("x.json", b"{"),
        ("x.json", b"[" * 10**5),
        ("x.json", b'{"label": true}'),
        ("x.json", b"\xff"),
    ],
)
def test_a_label_that_is_none_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = write(tmp_path / "a.tar", (name, content), ("x.jpg", b"1"))
    with pytest.raises(UserError, match=rf"a\.tar, where {name} is not a label: write a word or a whole number"):
        WebDataset(path).items()


def test_a_huge_label_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar.gz", ("x.cls", bytes(MOST_LABEL_BYTES + 1)), ("x.jpg", b"1"), mode="w:gz")
    with pytest.raises(UserError, match=r"has 'x.cls' of 1,048,577 bytes: take it out"):
        WebDataset(path).items()


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MOST_BYTES", 2**10)
    with pytest.raises(UserError, match=r"has 'x.jpg' of 1,025 bytes, more than 1,024: take it out"):
        WebDataset(write(tmp_path / "a.tar", ("x.jpg", bytes(2**10 + 1)))).items()


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ([("x.jpg", b"1"), ("y.jpg", b"1"), ("x.jpg", b"2")], "has 'a-x.jpg' twice: rename one of the two"),
        ([("x.cls", b"1")], "which holds no image"),
        ([], "which holds no image"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, members: list[tuple[str, bytes]], sentence: str) -> None:
    with pytest.raises(UserError, match=rf"ingest\.source\.path is .*a\.tar, .*{sentence}"):
        WebDataset(write(tmp_path / "a.tar", *members)).items()


@pytest.mark.parametrize("content", [b"", b"<html>", b"x" * 2000])
def test_damage_is_refused(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "a.tar", ("x.jpg", b"1"))
    (tmp_path / "b.tar").write_bytes(content)
    with pytest.raises(UserError, match=rf"path is {tmp_path}, in it b.tar, which is damaged or no such file"):
        WebDataset(tmp_path).items()


@pytest.mark.parametrize(
    ("path", "sentence"),
    [("missing.tar", "which cannot be read .No such file"), ("empty", r"a folder without a file \*\.tar: add some")],
)
def test_a_path_without_files_is_refused(tmp_path: Path, path: str, sentence: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=rf"ingest\.source\.path is .*{path}, .*{sentence}"):
        WebDataset(tmp_path / path).items()


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    source = WebDataset(write(tmp_path / "a.tar", *SAMPLES))
    items = source.items()
    write(tmp_path / "a.tar", *SAMPLES[:2])
    with pytest.raises(UserError, match="which changed while it was read: run the stage again"):
        list(source.contents(items, items))


def test_only_a_changed_file_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    any_date_is_certain(monkeypatch)
    write(tmp_path / "images/a.tar", *SAMPLES)
    for content in (b"1", b"1", b"2"):
        if content == b"2" or not Path("images/b.tar").exists():
            write(tmp_path / "images/b.tar", ("c.jpg", content))
        assert ingested(kind="webdataset", path="images")["b-c.jpg"] == content
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith("are new")]
    assert lines == [f"ingest: {new} of 3 images are new" for new in (3, 0, 1)]
