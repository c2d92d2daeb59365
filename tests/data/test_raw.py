"""Packs give back the bytes that were put in, are zip files for any tool, and stay where little changes."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffusion_core.data import raw
from diffusion_core.data.raw import (
    INDEX,
    PackWriter,
    RawFile,
    packs_to_keep,
    read_index,
    whole_packs,
    write_index,
)
from diffusion_core.data.sources.item import Item
from diffusion_core.errors import UserError
from tests.data.packed import pack, packs, unpacked

RANDOM = np.random.default_rng(0)
IMAGES = {
    f"{folder}/{number}.png": RANDOM.bytes(int(RANDOM.integers(1, 400)))
    for folder in ("cat", "ü/deep")
    for number in range(20)
}


def with_stamps(folder: Path, images: dict[str, bytes], known: list[RawFile] = (), **options) -> list[RawFile]:
    writer = PackWriter(folder, known, **options)
    for path, content in images.items():
        writer.add(Item(path, None, f"stamp of {path}", "label", "test"), content)
    return writer.close()


def test_bytes_paths_stamps_labels_and_splits_come_back(tmp_path: Path) -> None:
    files = with_stamps(tmp_path, IMAGES, pack_bytes=2000)
    write_index(tmp_path, files)
    assert unpacked(tmp_path) == IMAGES
    assert read_index(tmp_path) == sorted(files, key=lambda file: file.path)
    for file in files:
        told = (file.sha256, file.size, file.stamp, file.label, file.split)
        content = IMAGES[file.path]
        expected = (hashlib.sha256(content).hexdigest(), len(content), f"stamp of {file.path}", "label", "test")
        assert told == expected


def test_a_pack_is_named_by_its_bytes_and_has_about_its_size(tmp_path: Path) -> None:
    pack(tmp_path, IMAGES, pack_bytes=2000)
    found = packs(tmp_path)
    assert all(hashlib.sha256(content).hexdigest() == Path(name).stem for name, (_, content) in found.items())
    assert len(found) > 4
    # One image, the two headers of each, and the end are more.
    assert all(len(content) < 2000 + 400 + 150 * 20 for _, content in found.values())
    assert {file.name for file in tmp_path.iterdir()} == {*found, INDEX}


def test_any_zip_tool_opens_a_pack(tmp_path: Path) -> None:
    pack(tmp_path, IMAGES, pack_bytes=2000)
    content = {}
    for file in tmp_path.glob("*.zip"):
        with zipfile.ZipFile(file) as archive:
            assert archive.testzip() is None
            assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
            content |= {name: archive.read(name) for name in archive.namelist()}
    assert content == IMAGES


def test_equal_images_make_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        pack(tmp_path / name, IMAGES, pack_bytes=2000)
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    pack(tmp_path / "two", IMAGES | {"cat/0.png": b"other"}, pack_bytes=2000)
    assert one != {file.name: file.read_bytes() for file in (tmp_path / "two").iterdir()}


def test_the_order_of_the_rows_does_not_change_the_index(tmp_path: Path) -> None:
    files = pack(tmp_path, IMAGES)
    first = (tmp_path / INDEX).read_bytes()
    write_index(tmp_path, files[::-1])
    assert (tmp_path / INDEX).read_bytes() == first


def test_copies_of_an_image_are_stored_once(tmp_path: Path) -> None:
    content = RANDOM.bytes(5000)
    images = {"a.png": content, "b.png": b"1", "copies/c.png": content, "copies/d.png": content}
    pack(tmp_path / "copies", images)
    # Across packs too.
    pack(tmp_path / "small", images, pack_bytes=1)
    for folder in (tmp_path / "copies", tmp_path / "small"):
        assert sum(len(body) for _, body in packs(folder).values()) < 6000
        assert unpacked(folder) == images


def test_a_renamed_image_is_not_stored_again(tmp_path: Path) -> None:
    known = pack(tmp_path, IMAGES)
    before = packs(tmp_path)
    renamed = {f"renamed/{path}": content for path, content in IMAGES.items()}
    write_index(tmp_path, with_stamps(tmp_path, renamed, known))
    assert packs(tmp_path) == before
    assert unpacked(tmp_path) == renamed
    # The control: a writer that does not know them makes another pack.
    with_stamps(tmp_path, renamed)
    assert len(packs(tmp_path)) == len(before) + 1


def test_no_images_make_no_pack(tmp_path: Path) -> None:
    assert pack(tmp_path, {}) == []
    assert [file.name for file in tmp_path.iterdir()] == [INDEX]


def test_an_empty_image_is_one_too(tmp_path: Path) -> None:
    images = {"a.png": b"", "b.png": b"1", "c.png": b""}
    pack(tmp_path, images)
    assert unpacked(tmp_path) == images


@pytest.fixture
def two_packs(tmp_path: Path) -> tuple[Path, list[RawFile]]:
    """Ten images of 100 bytes in two packs of five."""
    images = {f"{number}.png": bytes([number]) * 100 for number in range(10)}
    files = pack(tmp_path, images, pack_bytes=5 * (100 + len("0.png") + 30))
    assert len({file.pack for file in files}) == 2
    return tmp_path, files


def test_a_pack_stays_while_half_of_it_is_used(two_packs: tuple[Path, list[RawFile]], monkeypatch) -> None:
    folder, files = two_packs
    monkeypatch.setattr(raw, "PACK_BYTES", 1500)
    first, second = files[0].pack, files[9].pack
    assert packs_to_keep(folder, files, grows=True) == {first, second}
    for count in (5, 4, 3):
        assert packs_to_keep(folder, files[:count], grows=False) == {first}
    assert packs_to_keep(folder, files[:2], grows=False) == set()
    assert packs_to_keep(folder, [*files[:2], *files[5:]], grows=False) == {second}


def test_the_headers_of_small_images_are_used_as_they_are(tmp_path: Path) -> None:
    """Else a pack of images that are smaller than their headers would be written again each time."""
    files = pack(tmp_path, {f"folder/{number}.png": bytes([number]) for number in range(9)})
    assert packs_to_keep(tmp_path, files, grows=False) == {files[0].pack}


def test_copies_do_not_make_a_pack_seem_used(two_packs: tuple[Path, list[RawFile]]) -> None:
    folder, files = two_packs
    copies = [replace(files[0], path=f"copy{number}.png") for number in range(9)]
    assert packs_to_keep(folder, copies, grows=False) == set()


def test_small_packs_are_joined_where_images_come(two_packs: tuple[Path, list[RawFile]]) -> None:
    folder, files = two_packs
    assert packs_to_keep(folder, files, grows=False) == {file.pack for file in files}
    assert packs_to_keep(folder, files, grows=True) == set()


def flipped(content: bytes, position: int) -> bytes:
    changed = bytearray(content)
    changed[position] ^= 1
    return bytes(changed)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file, image: file.unlink(),
        lambda file, image: file.write_bytes(b""),
        lambda file, image: file.write_bytes(file.read_bytes()[: image.offset + 50]),
        lambda file, image: file.write_bytes(flipped(file.read_bytes(), image.offset + 50)),
    ],
    ids=["missing", "empty", "truncated", "flipped"],
)
def test_a_damaged_pack_is_told_and_not_whole(two_packs: tuple[Path, list[RawFile]], spoil) -> None:
    folder, files = two_packs
    image = files[9]
    spoil(folder / image.pack, image)
    with pytest.raises(UserError, match=rf"{image.pack} is damaged \(.*dvc repro --force --single-item ingest"):
        image.read(folder)
    assert whole_packs(folder, files) == {files[0].pack}
    assert files[0].read(folder) == bytes(100)


def test_damage_beside_the_images_is_found_too(two_packs: tuple[Path, list[RawFile]]) -> None:
    folder, files = two_packs
    file = folder / files[0].pack
    file.write_bytes(flipped(file.read_bytes(), -1))
    assert whole_packs(folder, files) == {files[9].pack}


@pytest.mark.parametrize(
    "place",
    [
        {"size": 2**62},
        {"offset": -1},
        {"offset": 2**62},
        {"size": -1},
        {"size": -(2**62), "offset": 2**62},
        {"offset": 0},
        {"sha256": "0" * 64},
    ],
)
def test_a_place_that_no_pack_has_takes_no_memory_and_is_told(
    two_packs: tuple[Path, list[RawFile]], place: dict
) -> None:
    folder, files = two_packs
    write_index(folder, [replace(files[3], **place)])
    (file,) = read_index(folder)
    with pytest.raises(UserError, match=r"\.zip is damaged \((it has no bytes|the sha256 of 3\.png differs)"):
        file.read(folder)


@pytest.mark.parametrize("name", ["../out.zip", "/etc/passwd", "", "0" * 64, "A" * 64 + ".zip", "0" * 64 + ".zip\n"])
def test_a_pack_with_another_name_is_refused(two_packs: tuple[Path, list[RawFile]], name: str) -> None:
    folder, files = two_packs
    write_index(folder, [replace(files[0], pack=name), *files[1:]])
    with pytest.raises(UserError, match=r"index\.parquet is damaged \(it names a pack whose name is not a sha256\)"):
        read_index(folder)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" * 100], ids=["empty", "header", "garbage"])
def test_a_spoilt_index_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / INDEX).write_bytes(content)
    with pytest.raises(UserError, match=r"index\.parquet is damaged \(.*dvc repro --force --single-item ingest"):
        read_index(tmp_path)


def test_another_table_is_no_index(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a.png"]}), tmp_path / INDEX)
    with pytest.raises(UserError, match="its columns are not those of an index"):
        read_index(tmp_path)


def test_a_missing_index_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"index\.parquet is missing: make it with `dvc repro --force"):
        read_index(tmp_path)


def test_damage_changes_no_value_of_the_index_in_silence(tmp_path: Path) -> None:
    files = pack(tmp_path, dict(list(IMAGES.items())[:5]))
    content = (tmp_path / INDEX).read_bytes()
    # Column data lies before the footer, whose length the last eight bytes give.
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    found = 0
    positions = range(4, footer, 5)
    for position in positions:
        (tmp_path / INDEX).write_bytes(flipped(content, position))
        try:
            assert read_index(tmp_path) == files, position
        except UserError:
            found += 1
    assert found > len(positions) / 2
