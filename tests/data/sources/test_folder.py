"""The user's images are copied as they are, and nothing else is."""

import os
from pathlib import Path

import pytest

from diffusion_core.data.sources.folder import Folder
from diffusion_core.errors import UserError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "cat").mkdir(parents=True)
    return folder


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    (folder / "data/raw").mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def read(folder: Path) -> dict[str, bytes]:
    """Return the bytes of each image by its path."""
    source = Folder(folder)
    items = source.items()
    return dict(zip([item.path for item in items], source.contents(items), strict=True))


def test_images_keep_their_paths_and_bytes(images: Path, capsys: pytest.CaptureFixture) -> None:
    content = {
        "top.PNG": b"1",
        "cat/a.jpg": b"2",
        "cat/deep/b.JPEG": b"3",
        "cat/c.webp": b"4",
        "cat/d.bmp": b"5",
        "cat/e.gif": b"6",
        "cat/f.tif": b"7",
        "cat/g.TiFF": b"8",
    }
    for path, body in content.items():
        (images / path).parent.mkdir(exist_ok=True)
        (images / path).write_bytes(body)
    assert read(images) == content
    assert capsys.readouterr().out == ""


def test_what_is_no_image_is_left_out_and_told(images: Path, capsys: pytest.CaptureFixture) -> None:
    (images / "cat" / "a.png").write_bytes(b"1")
    (images / "cat" / "notes.txt").write_bytes(b"2")
    (images / "cat" / "figure.eps").write_bytes(b"3")
    (images / "cat" / "._a.png").write_bytes(b"4")
    (images / ".thumbnails").mkdir()
    (images / ".thumbnails" / "a.png").write_bytes(b"5")
    (images / "folder.png").mkdir()
    os.mkfifo(images / "pipe.png")
    assert read(images) == {"cat/a.png": b"1"}
    assert capsys.readouterr().out == "ingest: left out files that are not images: 3 (1 .eps, 1 .png, 1 .txt)\n"


def test_a_link_that_leads_out_is_not_followed(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key.png").write_bytes(b"secret")
    (images / "cat" / "a.png").write_bytes(b"1")
    (images / "inside.png").symlink_to("cat/a.png")
    (images / "outside.png").symlink_to(secret / "key.png")
    (images / "climbing.png").symlink_to("../secret/key.png")
    (images / "chain.png").symlink_to("outside.png")
    (images / "folder").symlink_to(secret)
    (images / "ring").symlink_to(images)
    (images / "loop.png").symlink_to("loop.png")
    (images / "dangling.png").symlink_to("nowhere.png")
    assert read(images) == {"cat/a.png": b"1", "inside.png": b"1"}
    assert capsys.readouterr().out == (
        "ingest: left out files that are not images: 2 (2 .png)\n"
        "ingest: left out links that lead elsewhere: 5; follow_links: true follows them\n"
    )


def test_the_path_may_be_a_link_or_begin_at_home(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (images / "cat" / "a.png").write_bytes(b"1")
    (tmp_path / "link").symlink_to(images)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read(Path("~/link")) == {"cat/a.png": b"1"}


def test_a_relative_path_begins_at_the_projects_folder(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images / "cat" / "a.png").write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    assert read(Path("pictures")) == {"cat/a.png": b"1"}


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("../missing", ", which does not exist: correct it"),
        ("../file.png", ", which is not a folder: name the folder"),
        ("../pictures", r", which holds no image \(.*\.png.*\): add some"),
        ("~nobody-of-this-name/pictures", "correct it in params.yaml"),
        ("..", "overlaps .*data, where the pipeline writes: keep the images in a folder of their own"),
        ("data", "overlaps .*data, where"),
        ("data/raw", "overlaps .*data, where"),
        (".", r"overlaps .*data, where"),
    ],
)
def test_a_path_without_images_is_told(tmp_path: Path, path: str, sentence: str) -> None:
    (tmp_path / "file.png").write_bytes(b"1")
    with pytest.raises(UserError, match=rf"ingest\.source\.path is {path}.*?{sentence}"):
        read(Path(path))


def test_a_name_that_is_no_text_is_told(images: Path) -> None:
    Path(os.fsdecode(os.fsencode(images) + b"/\xff.png")).write_bytes(b"1")
    with pytest.raises(UserError, match=r"ingest\.source\.path holds .*xff\.png.*: rename the file"):
        read(images)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("secret", ["cat", "cat/a.png"])
def test_what_cannot_be_read_is_told(images: Path, secret: str) -> None:
    (images / "cat" / "a.png").write_bytes(b"1")
    (images / secret).chmod(0)
    try:
        with pytest.raises(UserError, match=rf"ingest\.source\.path: .*{secret} cannot be read"):
            read(images)
    finally:
        (images / secret).chmod(0o700)
