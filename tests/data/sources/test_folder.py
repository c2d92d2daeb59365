"""The user's images are read as they are, and nothing else is; what did not change is not read again."""

import os
import time
from pathlib import Path

import pytest

from diffusion_core.data.sources import folder
from diffusion_core.data.sources.folder import Folder
from diffusion_core.errors import UserError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "cat").mkdir(parents=True)
    return folder


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the pipeline's data."""
    place = tmp_path / "project"
    (place / "data" / "raw").mkdir(parents=True)
    monkeypatch.chdir(place)
    return place


def read(path: Path) -> dict[str, bytes]:
    items = Folder(path).items()
    contents = {item.path: body for item, body in zip(items, Folder(path).contents(items), strict=True)}
    assert [item.size for item in items] == [len(body) for body in contents.values()]
    return contents


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
    assert capsys.readouterr().out == ("ingest: left out 3 files that are not images and 0 links that lead elsewhere\n")


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
    assert capsys.readouterr().out == ("ingest: left out 2 files that are not images and 5 links that lead elsewhere\n")


def test_the_path_may_be_a_link_or_begin_at_home(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (images / "cat" / "a.png").write_bytes(b"1")
    (tmp_path / "link").symlink_to(images)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read(Path("~/link")) == {"cat/a.png": b"1"}


def test_a_relative_path_begins_at_the_projects_folder(images: Path) -> None:
    (images / "cat" / "a.png").write_bytes(b"1")
    assert read(Path("../pictures")) == {"cat/a.png": b"1"}


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("../missing", ", which does not exist: correct it"),
        ("../file.png", ", which is not a folder: name the folder"),
        ("../pictures", r", which holds no image \(.*\.png.*\): add some"),
        ("~nobody-of-this-name/pictures", "correct it in params.yaml"),
        (".", "overlaps .*data, where the pipeline writes: keep the images in a folder of their own"),
        ("data", "overlaps .*data, where"),
        ("data/raw", "overlaps .*data, where"),
        ("..", r"overlaps .*data, where"),
    ],
)
def test_a_path_without_images_is_told(tmp_path: Path, path: str, sentence: str) -> None:
    (tmp_path / "file.png").write_bytes(b"1")
    with pytest.raises(UserError, match=rf"ingest\.source\.path is {path}.*?{sentence}"):
        Folder(Path(path)).items()


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


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    now = time.time_ns() + int(seconds * 1e9)
    monkeypatch.setattr(folder.time, "time_ns", lambda: now)


def stamps(images: Path) -> dict[str, str | None]:
    return {item.path: item.stamp for item in Folder(images).items()}


def test_what_was_written_just_now_has_no_stamp(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written again at once, it may have the same dates and size."""
    (images / "a.png").write_bytes(b"1")
    assert stamps(images) == {"a.png": None}
    # An old date says nothing: it may have been set just now.
    os.utime(images / "a.png", (0, 0))
    assert stamps(images) == {"a.png": None}
    later(monkeypatch, 2)
    assert stamps(images) == {"a.png": None}
    later(monkeypatch, 4)
    assert stamps(images)["a.png"] is not None


def test_a_date_in_the_future_gives_no_stamp(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (images / "a.png").write_bytes(b"1")
    os.utime(images / "a.png", (2**32, 2**32))
    later(monkeypatch, 4)
    assert stamps(images) == {"a.png": None}


def test_a_file_that_is_written_again_has_another_stamp_even_with_its_old_date(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = images / "a.png"
    file.write_bytes(b"1")
    (images / "b.png").write_bytes(b"1")
    os.utime(file, (1, 1))
    later(monkeypatch, 4)
    before, date = stamps(images), file.stat().st_mtime_ns
    file.write_bytes(b"2")
    os.utime(file, (1, 1))
    later(monkeypatch, 8)
    after = stamps(images)
    # Its date and its size alone would not tell.
    assert (file.stat().st_mtime_ns, file.stat().st_size) == (date, 1)
    assert after["a.png"] not in (before["a.png"], None)
    assert after["b.png"] == before["b.png"]


def test_some_files_are_read_in_the_order_asked_for_and_no_others(images: Path) -> None:
    for name in "abc":
        (images / f"{name}.png").write_bytes(name.encode())
    items = Folder(images).items()
    (images / "b.png").unlink()
    assert list(Folder(images).contents([items[2], items[0]], items)) == [b"c", b"a"]


def test_a_file_that_went_meanwhile_is_told(images: Path) -> None:
    (images / "a.png").write_bytes(b"1")
    items = Folder(images).items()
    (images / "a.png").unlink()
    with pytest.raises(UserError, match=r"ingest\.source\.path: .*a\.png cannot be read \(No such file"):
        list(Folder(images).contents(items, items))
