"""`data/raw` holds what the source has, or what it held before, and what is known is not read again."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from zipfile import ZipFile

import pytest

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import IngestSettings
from diffusion_core.data import raw
from diffusion_core.data.raw import INDEX, read_index
from diffusion_core.data.sources.folder import Folder
from diffusion_core.data.sources.item import Item
from diffusion_core.errors import UserError
from diffusion_core.stages import ingest
from tests.data.packed import pack, packs, unpacked

RAW = Path("data/raw")
# Long ago, so that the dates of the files show each change.
OLD = 1_700_000_000


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(autouse=True)
def _certain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No need to wait until the date of a file shows every change."""
    monkeypatch.setattr("diffusion_core.data.sources.stamps.CERTAIN", 0)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return fill(tmp_path / "pictures", {f"cat/{number}.png": str(number).encode() * 500 for number in range(6)})


@pytest.fixture
def _two_packs(monkeypatch: pytest.MonkeyPatch, pictures: Path) -> None:
    """No pack is small enough to be joined; a second run has made another one, of the folder `dog`."""
    monkeypatch.setattr(raw, "PACK_BYTES", 64)
    take(pictures)
    fill(pictures, {"dog/1.png": b"d" * 500, "dog/2.png": b"o" * 500})
    take(pictures)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The paths that each run reads from the folder."""
    asked: list[list[str]] = []
    contents = Folder.contents

    def recorded(self: Folder, wanted: Sequence[Item], *more: object) -> Iterator[bytes]:
        asked.append([item.path for item in wanted])
        return contents(self, wanted, *more)

    monkeypatch.setattr(Folder, "contents", recorded)
    return asked


def fill(folder: Path, images: dict[str, bytes]) -> Path:
    for path, content in images.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        os.utime(file, (OLD, OLD))
    return folder


def present(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def settings(**source: str) -> IngestSettings:
    return IngestSettings.model_validate({"source": source})


def take(pictures: Path) -> dict[str, bytes]:
    ingest.run(settings(kind="folder", path=str(pictures)), Environment())
    return unpacked(RAW)


def test_what_the_source_no_longer_has_goes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "old.png").write_bytes(b"1")
    ingest.run(settings(kind="folder", path=str(pictures)), Environment())
    (pictures / "old.png").unlink()
    (pictures / "new.png").write_bytes(b"2")
    ingest.run(settings(kind="folder", path="../pictures"), Environment())
    assert unpacked(RAW) == {"new.png": b"2"}
    (file,) = RAW.glob("*.zip")
    with ZipFile(file) as archive:
        assert archive.namelist() == ["new.png"]
    assert [file.name for file in Path("data").iterdir()] == ["raw"]
    assert capsys.readouterr().out.endswith("ingest: 1 of 1 images are new\ningest: 1 image in data/raw\n")


def test_a_failure_leaves_what_was_there() -> None:
    pack(RAW, {"old.png": b"1"})
    before = present(RAW)
    with pytest.raises(UserError, match=r"ingest\.source\.path"):
        ingest.run(settings(kind="folder", path="missing"), Environment())
    assert present(RAW) == before
    assert [file.name for file in Path("data").iterdir()] == ["raw"]


def test_a_failure_in_the_middle_leaves_what_was_there(monkeypatch: pytest.MonkeyPatch, pictures: Path) -> None:
    take(pictures)
    before = present(RAW)

    def broken(self: Folder, wanted: Sequence[Item], *_: object) -> Iterator[bytes]:
        yield b"8"
        raise UserError("the disk is gone")

    fill(pictures, {"new/1.png": b"8", "new/2.png": b"9"})
    monkeypatch.setattr(Folder, "contents", broken)
    with pytest.raises(UserError, match="the disk is gone"):
        take(pictures)
    assert present(RAW) == before
    assert [file.name for file in Path("data").iterdir()] == ["raw"]


def test_only_what_is_new_or_was_replaced_is_read(
    pictures: Path, asked: list[list[str]], capsys: pytest.CaptureFixture
) -> None:
    take(pictures)
    fill(pictures, {"cat/new.png": b"8", "cat/1.png": b"another size"})
    # Of the size it had; its date tells.
    (pictures / "cat/2.png").write_bytes(b"x" * 500)
    (pictures / "cat/3.png").unlink()
    capsys.readouterr()
    assert take(pictures) == present(pictures)
    assert asked == [sorted([f"cat/{number}.png" for number in range(6)]), ["cat/1.png", "cat/2.png", "cat/new.png"]]
    assert capsys.readouterr().out == "ingest: 3 of 6 images are new\ningest: 6 images in data/raw\n"


def test_a_rerun_with_nothing_new_reads_nothing_and_makes_the_same_bytes(
    pictures: Path, asked: list[list[str]]
) -> None:
    take(pictures)
    before, of_packs = present(RAW), packs(RAW)
    take(pictures)
    assert asked[1] == []
    assert present(RAW) == before
    # The packs are the same files.
    assert packs(RAW) == of_packs


def test_images_that_may_still_change_without_a_trace_are_read_again(
    monkeypatch: pytest.MonkeyPatch, pictures: Path, asked: list[list[str]]
) -> None:
    """The control of the tests above: where dates show no change, nothing is known."""
    monkeypatch.setattr("diffusion_core.data.sources.stamps.CERTAIN", 10**30)
    take(pictures)
    take(pictures)
    assert asked[1] == asked[0]


def test_another_folder_has_other_images_even_where_paths_and_dates_are_equal(tmp_path: Path, pictures: Path) -> None:
    """Copies of a backup, say; the date that says when the file itself changed differs on a real disk."""
    take(pictures)
    known = {file.path: file for file in read_index(RAW)}
    other = fill(tmp_path / "other", {path: b"o" * len(content) for path, content in present(pictures).items()})
    assert take(other) == present(other)
    for path, file in known.items():
        assert file.stamp is not None
        (origin,) = {each.stamp.split()[0] for each in read_index(RAW) if each.stamp and each.path == path}
        assert origin != file.stamp.split()[0]


@pytest.mark.usefixtures("_two_packs")
def test_packs_of_images_that_stay_are_the_same_files(pictures: Path) -> None:
    before = packs(RAW)
    assert len(before) == 2
    fill(pictures, {"cat/new.png": b"8"})
    (pictures / "cat/3.png").unlink()
    assert take(pictures) == present(pictures)
    after = packs(RAW)
    assert len(after) == 3
    assert before.items() < after.items()


def test_small_packs_are_joined_with_what_is_new(pictures: Path) -> None:
    """The control of the test above, and why a nightly image does not make a pack each night."""
    take(pictures)
    for number in range(3):
        fill(pictures, {f"cat/new{number}.png": b"8"})
        assert take(pictures) == present(pictures)
        assert len(packs(RAW)) == 1


def test_a_pack_most_of_whose_images_are_gone_is_written_again(pictures: Path) -> None:
    take(pictures)
    before = packs(RAW)
    for number in range(5):
        (pictures / f"cat/{number}.png").unlink()
    assert take(pictures) == present(pictures)
    (file,) = packs(RAW)
    assert file not in before
    assert (RAW / file).stat().st_size < 800


def test_where_nothing_can_be_linked_packs_are_copied(
    monkeypatch: pytest.MonkeyPatch, pictures: Path, asked: list[list[str]]
) -> None:
    def link(*_: object) -> None:
        raise OSError("another file system")

    take(pictures)
    before = packs(RAW)
    monkeypatch.setattr(os, "link", link)
    assert take(pictures) == present(pictures)
    assert asked[1] == []
    after = packs(RAW)
    assert {name: content for name, (_, content) in after.items()} == {
        name: content for name, (_, content) in before.items()
    }
    assert {inode for inode, _ in after.values()}.isdisjoint(inode for inode, _ in before.values())


@pytest.mark.usefixtures("_two_packs")
@pytest.mark.parametrize("damage", [b"", b"cut", None])
def test_images_of_a_pack_that_is_not_as_it_was_written_are_read_again(
    pictures: Path, asked: list[list[str]], damage: bytes | None
) -> None:
    whole = packs(RAW)
    (broken,) = {file.pack for file in read_index(RAW) if file.path.startswith("dog")}
    # What else links to the pack, as DVC's cache, keeps its bytes.
    (RAW / broken).unlink()
    if damage is not None:
        (RAW / broken).write_bytes(damage)
    assert take(pictures) == present(pictures)
    assert asked == [["dog/1.png", "dog/2.png"]]
    after = packs(RAW)
    assert after.keys() == whole.keys()
    assert after[broken][1] == whole[broken][1]
    # The other one is the same file.
    assert all(after[name] == whole[name] for name in whole if name != broken)


def test_one_flipped_bit_makes_a_pack_damaged_and_without_a_look_at_the_bytes_it_would_stay(
    monkeypatch: pytest.MonkeyPatch, pictures: Path, asked: list[list[str]]
) -> None:
    take(pictures)
    (file,) = RAW.glob("*.zip")
    rotten = bytearray(file.read_bytes())
    rotten[read_index(RAW)[2].offset] ^= 1
    file.write_bytes(rotten)
    with monkeypatch.context() as patch:
        patch.setattr(ingest, "whole_packs", lambda folder, files: {each.pack for each in files})
        ingest.run(settings(kind="folder", path=str(pictures)), Environment())
    assert asked[1] == []
    with pytest.raises(UserError, match=r"the sha256 of cat/2\.png differs"):
        unpacked(RAW)
    assert take(pictures) == present(pictures)
    assert len(asked[2]) == 6


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"[]", None])
def test_a_damaged_or_missing_index_is_no_index(pictures: Path, asked: list[list[str]], damage: bytes | None) -> None:
    take(pictures)
    before = (RAW / INDEX).read_bytes()
    (RAW / INDEX).unlink()
    if damage is not None:
        (RAW / INDEX).write_bytes(damage)
    assert take(pictures) == present(pictures)
    assert len(asked[1]) == 6
    assert (RAW / INDEX).read_bytes() == before


def test_files_with_equal_bytes_lie_in_the_pack_once(pictures: Path) -> None:
    fill(pictures, {"dog/copy.png": (pictures / "cat/1.png").read_bytes()})
    assert take(pictures) == present(pictures)
    (file,) = RAW.glob("*.zip")
    with ZipFile(file) as archive:
        assert len(archive.namelist()) == 6
    # The copy goes, and then the first one.
    (pictures / "cat/1.png").unlink()
    assert take(pictures) == present(pictures)
    copy = next(each for each in read_index(RAW) if each.path == "dog/copy.png")
    assert copy.sha256 == hashlib.sha256(b"1" * 500).hexdigest()


def test_a_changed_table_of_labels_reads_no_image_again(pictures: Path, asked: list[list[str]]) -> None:
    take(pictures)
    assert {file.label for file in read_index(RAW)} == {None}
    table = "file_name,label\n" + "".join(f"cat/{number}.png,tabby\n" for number in range(6))
    fill(pictures, {"labels.csv": table.encode()})
    take(pictures)
    assert asked[1] == []
    assert {file.label for file in read_index(RAW)} == {"tabby"}
