"""`data/raw` holds what the source has, or what it held before, and only what changed is read."""

import gc
import os
import time
import zipfile
from pathlib import Path

import pytest

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import IngestSettings
from diffusion_core.data import raw
from diffusion_core.data.raw import INDEX, read_index, write_index
from diffusion_core.data.sources import folder as folders
from diffusion_core.errors import UserError
from diffusion_core.stages import ingest
from tests.data.packed import packs, unpacked

RAW = Path("data/raw")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    return folder


def settings(**source: str) -> IngestSettings:
    return IngestSettings.model_validate({"source": source})


def write(folder: Path, images: dict[str, bytes]) -> None:
    for path, content in images.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


@pytest.fixture
def bring(monkeypatch: pytest.MonkeyPatch, pictures: Path, capsys: pytest.CaptureFixture):
    """Ingest a folder, as if its files were ten seconds old; return how many were read."""
    opened = []
    read_bytes = Path.read_bytes

    def reading(file: Path) -> bytes:
        opened.append(file)
        return read_bytes(file)

    def bring(folder: Path | str = pictures) -> int:
        opened.clear()
        with monkeypatch.context() as patch:
            now = time.time_ns() + 10**10
            patch.setattr(folders.time, "time_ns", lambda: now)
            patch.setattr(Path, "read_bytes", reading)
            ingest.run(settings(kind="folder", path=str(folder)), Environment())
        told = capsys.readouterr().out
        assert f"ingest: {len(opened)} of " in told
        return len(opened)

    return bring


@pytest.fixture
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a pack have six of these images."""
    monkeypatch.setattr(raw, "PACK_BYTES", 1000)
    monkeypatch.setitem(raw.PackWriter.__init__.__kwdefaults__, "pack_bytes", 1000)


IMAGES = {f"cat/{number}.png": f"image {number}".encode() * 20 for number in range(20)}


def test_what_the_source_no_longer_has_goes(pictures: Path, capsys: pytest.CaptureFixture) -> None:
    write(pictures, {"old.png": b"1"})
    ingest.run(settings(kind="folder", path=str(pictures)), Environment())
    (pictures / "old.png").unlink()
    write(pictures, {"new.png": b"2"})
    ingest.run(settings(kind="folder", path="../pictures"), Environment())
    assert unpacked(RAW) == {"new.png": b"2"}
    assert [file.name for file in Path("data").iterdir()] == ["raw"]
    assert capsys.readouterr().out.endswith("ingest: 1 of 1 images are new\ningest: 1 images in data/raw\n")


def test_digits_need_no_options() -> None:
    ingest.run(settings(kind="digits"), Environment())
    images = unpacked(RAW)
    assert len(images) == 1797
    assert all(content.startswith(b"\x89PNG") for content in images.values())


@pytest.mark.parametrize("place", ["folder", "contents", "write_index"])
def test_a_failure_leaves_what_was_there(pictures: Path, bring, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    write(pictures, IMAGES)
    bring()
    before = {file.name: (file.stat().st_ino, file.read_bytes()) for file in RAW.iterdir()}
    write(pictures, {"new.png": b"2", "newer.png": b"3"})

    def fail(*_: object) -> None:
        raise UserError("ingest.source.path: it fails")

    if place == "write_index":
        monkeypatch.setattr(ingest, place, fail)
    elif place == "contents":
        read_bytes = Path.read_bytes
        monkeypatch.setattr(Path, "read_bytes", lambda file: fail() if file.name == "newer.png" else read_bytes(file))
    with pytest.raises(UserError, match=r"ingest\.source\.path"):
        ingest.run(settings(kind="folder", path="missing" if place == "folder" else str(pictures)), Environment())
    monkeypatch.undo()
    monkeypatch.chdir(pictures.parent / "project")
    assert {file.name: (file.stat().st_ino, file.read_bytes()) for file in RAW.iterdir()} == before
    assert [file.name for file in Path("data").iterdir()] == ["raw"]


@pytest.mark.usefixtures("small_packs")
def test_only_what_is_new_or_changed_is_read_and_the_packs_stay(pictures: Path, bring) -> None:
    write(pictures, IMAGES)
    assert bring() == 20
    before = packs(RAW)
    assert bring() == 0
    assert packs(RAW) == before
    write(pictures, {"cat/3.png": b"other", "dog/new.png": b"new"})
    assert bring() == 2
    assert unpacked(RAW) == IMAGES | {"cat/3.png": b"other", "dog/new.png": b"new"}
    after = packs(RAW)
    assert before.items() <= after.items()
    assert len(after) == len(before) + 1


def test_with_nothing_new_the_index_has_the_same_bytes(pictures: Path, bring) -> None:
    write(pictures, IMAGES)
    bring()
    first = (RAW / INDEX).read_bytes()
    bring()
    assert (RAW / INDEX).read_bytes() == first


def test_small_packs_of_many_nights_are_joined(pictures: Path, bring, monkeypatch) -> None:
    monkeypatch.setattr(raw, "PACK_BYTES", 4000)
    images = {}
    for night in range(20):
        images[f"{night}.png"] = bytes([night]) * 90
        write(pictures, {f"{night}.png": bytes([night]) * 90})
        assert bring() == 1
        assert unpacked(RAW) == images
    # An image with its headers has about 200 bytes, so that packs of an eighth of 4,000 hold three.
    assert len(packs(RAW)) == 7


def test_of_a_pack_that_is_little_used_the_rest_is_written_again_without_reading_it(pictures: Path, bring) -> None:
    write(pictures, IMAGES)
    bring()
    before = packs(RAW)
    for number in range(15):
        (pictures / f"cat/{number}.png").unlink()
    assert bring() == 0
    after = packs(RAW)
    assert not {*before} & {*after}
    assert sum(len(content) for _, content in after.values()) < sum(len(content) for _, content in before.values()) / 3
    assert unpacked(RAW) == {path: IMAGES[path] for path in [*IMAGES][15:]}


@pytest.mark.usefixtures("small_packs")
def test_a_renamed_image_is_read_and_not_stored_again(pictures: Path, bring) -> None:
    write(pictures, IMAGES)
    bring()
    before = packs(RAW)
    (pictures / "cat/3.png").rename(pictures / "cat/renamed.png")
    assert bring() == 1
    assert packs(RAW) == before
    assert unpacked(RAW)["cat/renamed.png"] == IMAGES["cat/3.png"]


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


@pytest.mark.usefixtures("small_packs")
@pytest.mark.parametrize("spoil", ["flip", "remove", "truncate", "index"])
def test_images_of_a_damaged_pack_are_read_again(pictures: Path, bring, spoil: str) -> None:
    write(pictures, IMAGES)
    bring()
    files = read_index(RAW)
    damaged = RAW / files[3].pack
    inside = [file for file in files if file.pack == damaged.name]
    assert 1 < len(inside) < 10
    if spoil == "flip":
        flip(damaged, files[3].offset)
    elif spoil == "remove":
        damaged.unlink()
    elif spoil == "truncate":
        damaged.write_bytes(damaged.read_bytes()[:-1])
    else:
        (RAW / INDEX).write_bytes(b"damaged")
    assert bring() == (20 if spoil == "index" else len(inside))
    assert unpacked(RAW) == IMAGES
    assert bring() == 0


def test_without_a_look_at_the_packs_damage_would_stay(pictures: Path, bring, monkeypatch) -> None:
    """The control."""
    write(pictures, IMAGES)
    bring()
    (file,) = RAW.glob("*.zip")
    flip(file, read_index(RAW)[3].offset)
    monkeypatch.setattr(raw, "_is_whole", lambda pack: True)
    assert bring() == 0
    with pytest.raises(UserError, match="sha256"):
        unpacked(RAW)


def test_a_file_with_its_old_size_and_date_is_read_again(pictures: Path, bring) -> None:
    write(pictures, IMAGES)
    file = pictures / "cat/3.png"
    os.utime(file, (1, 1))
    bring()
    content = b"x" * len(IMAGES["cat/3.png"])
    file.write_bytes(content)
    os.utime(file, (1, 1))
    assert bring() == 1
    assert unpacked(RAW)["cat/3.png"] == content


def test_what_was_written_just_now_is_read_again(pictures: Path, bring, capsys) -> None:
    write(pictures, IMAGES)
    ingest.run(settings(kind="folder", path=str(pictures)), Environment())
    capsys.readouterr()
    assert bring() == 20
    assert bring() == 0


def test_another_folder_with_the_same_dates_is_read(tmp_path: Path, pictures: Path, bring, monkeypatch) -> None:
    other = tmp_path / "others"
    write(pictures, {"a.png": b"1"})
    write(other, {"a.png": b"2"})
    # No program can set the second date, so both are said to be the same.
    item = folders._item

    def same(root: Path, file: Path, now: int):
        return folders.Item(item(root, file, now).path, 1, "the same dates")

    monkeypatch.setattr(folders, "_item", same)
    assert bring() == 1
    assert bring() == 0
    assert bring(other) == 1
    assert unpacked(RAW) == {"a.png": b"2"}


def test_without_an_origin_they_would_be_confused(tmp_path: Path, pictures: Path, bring, monkeypatch) -> None:
    """The control."""
    write(pictures, {"a.png": b"1"})
    write(tmp_path / "others", {"a.png": b"2"})
    monkeypatch.setattr(folders, "_item", lambda root, file, now: folders.Item("a.png", 1, "the same dates"))
    monkeypatch.setattr(ingest, "_of", lambda origin, item: item)
    bring()
    assert bring(tmp_path / "others") == 0
    assert unpacked(RAW) == {"a.png": b"1"}


def test_where_nothing_can_be_linked_it_is_copied(pictures: Path, bring, monkeypatch) -> None:
    def link(*_: object) -> None:
        raise OSError("another file system")

    write(pictures, IMAGES)
    bring()
    monkeypatch.setattr(os, "link", link)
    assert bring() == 0
    assert unpacked(RAW) == IMAGES


def test_the_same_images_make_the_same_bytes_elsewhere(pictures: Path, tmp_path: Path, monkeypatch) -> None:
    with zipfile.ZipFile(pictures / "images.zip", "w") as archive:
        for path, content in IMAGES.items():
            archive.writestr(path, content)
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        ingest.run(settings(kind="zip", path="../pictures/images.zip"), Environment())
        made.append({file.name: file.read_bytes() for file in RAW.iterdir()})
    assert made[0] == made[1]


def test_an_index_that_lies_about_places_is_told(pictures: Path, bring) -> None:
    """Only who forges it writes it, as its checksums are right."""
    write(pictures, IMAGES)
    bring()
    files = read_index(RAW)
    lying = [raw.replace(files[0], offset=2**62), *files[1:3]]
    write_index(RAW, lying)
    for path in [*IMAGES][3:]:
        (pictures / path).unlink()
    with pytest.raises(UserError, match=r"\.zip is damaged \(it has no bytes where index\.parquet has those of"):
        bring()


@pytest.mark.filterwarnings("error")
def test_an_error_in_the_middle_of_a_pack_prints_nothing_later(pictures: Path, monkeypatch) -> None:
    """A zip that is not closed writes its end when it is collected."""
    write(pictures, IMAGES)
    (pictures / "dog").mkdir()
    (pictures / "dog/gone.png").write_bytes(b"1")
    read_bytes = Path.read_bytes

    def reading(file: Path) -> bytes:
        if file.name == "gone.png":
            file.unlink()
        return read_bytes(file)

    monkeypatch.setattr(Path, "read_bytes", reading)
    with pytest.raises(UserError, match=r"gone\.png cannot be read"):
        ingest.run(settings(kind="folder", path=str(pictures)), Environment())
    gc.collect()
    assert not RAW.exists()
