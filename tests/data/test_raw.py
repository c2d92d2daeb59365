"""Packs hold the bytes of the images, and those that do not change stay as they are."""

import zipfile
from pathlib import Path

import pytest

from diffusion_core.data import raw
from diffusion_core.data.raw import PackWriter, packs_to_keep, read_index, whole_packs
from diffusion_core.data.sources.item import Item
from diffusion_core.errors import UserError
from tests.data.packed import pack, packs, unpacked

IMAGES = {f"cat/{number}.png": bytes([number]) * 50 for number in range(20)}


def test_images_come_back_as_they_were(tmp_path: Path) -> None:
    pack(tmp_path / "raw", IMAGES, pack_bytes=500)
    assert unpacked(tmp_path / "raw") == IMAGES
    assert len(packs(tmp_path / "raw")) > 1


def test_equal_images_make_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        pack(tmp_path / name, IMAGES)
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two


def test_any_tool_opens_a_pack(tmp_path: Path) -> None:
    pack(tmp_path, IMAGES)
    (file,) = tmp_path.glob("*.zip")
    with zipfile.ZipFile(file) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == IMAGES
        assert archive.testzip() is None


def test_copies_and_what_is_there_already_are_stored_once(tmp_path: Path) -> None:
    files = pack(tmp_path, {"a.png": b"x" * 1000, "b.png": b"x" * 1000})
    assert len({(file.pack, file.offset) for file in files}) == 1
    before = packs(tmp_path)
    with PackWriter(tmp_path, files) as writer:
        writer.add(Item("renamed.png", 1000, None), b"x" * 1000)
        (renamed,) = writer.close()
    assert packs(tmp_path) == before
    assert renamed.read(tmp_path) == b"x" * 1000


def test_a_pack_stays_while_half_of_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "PACK_BYTES", 2000)
    files = pack(tmp_path, IMAGES)
    (name,) = packs(tmp_path)
    assert packs_to_keep(tmp_path, files, grows=True) == {name}
    assert packs_to_keep(tmp_path, files[:11], grows=True) == {name}
    assert packs_to_keep(tmp_path, files[:8], grows=True) == set()


def test_a_small_pack_is_joined_only_where_images_come(tmp_path: Path) -> None:
    files = pack(tmp_path, IMAGES)
    assert packs_to_keep(tmp_path, files, grows=True) == set()
    assert packs_to_keep(tmp_path, files, grows=False) == {*packs(tmp_path)}


@pytest.mark.parametrize("damage", ["flipped", "cut", "removed"])
def test_a_damaged_pack_is_told_and_is_not_whole(tmp_path: Path, damage: str) -> None:
    files = pack(tmp_path, IMAGES)
    (file,) = tmp_path.glob("*.zip")
    assert whole_packs(tmp_path, files) == {file.name}
    content = bytearray(file.read_bytes())
    place = files[3].offset + 1
    content[place] ^= 1
    file.unlink()
    if damage != "removed":
        file.write_bytes(content if damage == "flipped" else content[: place - 5])
    with pytest.raises(UserError, match=rf"{file.name} is damaged .*remove .* and make it again"):
        files[3].read(tmp_path)
    assert whole_packs(tmp_path, files) == set()


def test_a_missing_index_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"index\.parquet is missing: make it with"):
        read_index(tmp_path)
