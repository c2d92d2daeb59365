"""Arrays of NumPy become images, and nothing in them is unpickled."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_core.data.sources import archive
from diffusion_core.data.sources.arrays import Arrays
from diffusion_core.errors import UserError
from tests.data.sources.reading import any_date_is_certain, ingested, read, told

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), np.uint8)


def decoded(contents: dict[str, bytes]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(io.BytesIO(content))) for content in contents.values()])


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 1), (6, 4, 3), (6, 4, 4)])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed, np.save])
def test_pixels_are_kept(tmp_path: Path, shape: tuple[int, ...], save) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, *shape), np.uint8)
    path = tmp_path / ("a.npy" if save is np.save else "a.npz")
    save(path, pixels) if save is np.save else save(path, images=pixels)
    contents = read(Arrays(path))
    assert [*contents] == [f"{'a' if save is np.save else 'images'}-{row:06d}.png" for row in range(5)]
    np.testing.assert_array_equal(decoded(contents), pixels[..., 0] if shape[2:] == (1,) else pixels)


@pytest.mark.parametrize(
    "labels", [np.arange(5), np.arange(5, dtype=np.uint8)[:, None], np.array(list("01234")), np.arange(5)[::-1][::-1]]
)
def test_labels_are_one_for_each(tmp_path: Path, labels: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=labels)
    assert [label for label, _ in told(Arrays(tmp_path / "a.npz")).values()] == [*"01234"]


@pytest.mark.parametrize("names", [("{}_images", "{}_labels"), ("x_{}", "y_{}")])
def test_names_say_splits(tmp_path: Path, names: tuple[str, str]) -> None:
    splits = {"train": 3, "val": 1, "test": 1}
    arrays = {}
    for number, (split, count) in enumerate(splits.items()):
        arrays[names[0].format(split)] = PIXELS[:count]
        arrays[names[1].format(split)] = np.full((count, 1), number)
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    assert [*told(Arrays(tmp_path / "a.npz")).values()] == [("0", "train")] * 3 + [("1", "val"), ("2", "test")]
    assert len(read(Arrays(tmp_path / "a.npz"))) == 5


def test_arrays_without_names_are_images_and_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", PIXELS, np.arange(5))
    assert [label for label, _ in told(Arrays(tmp_path / "a.npz")).values()] == [*"01234"]


def test_other_arrays_are_left_out_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS, weights=np.ones(3), test_labels=np.ones(3))
    assert len(read(Arrays(tmp_path / "a.npz"))) == 5
    assert capsys.readouterr().out == "ingest: left out arrays: 2 (1 array test_labels, 1 array weights)\n"


@pytest.mark.parametrize("save", [np.save, np.savez_compressed])
def test_some_images_alone_are_read(tmp_path: Path, save) -> None:
    path = tmp_path / ("a.npy" if save is np.save else "a.npz")
    save(path, PIXELS)
    source = Arrays(path)
    items = source.items()
    everything = [*source.contents(items, items)]
    for wanted in ([0], [4], [1, 3], [*range(5)], []):
        assert [*source.contents([items[each] for each in wanted], items)] == [everything[each] for each in wanted]


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"images": PIXELS / 255}, r"array images is of float64: save whole .* `.astype\(numpy.uint8\)`"),
        ({"images": PIXELS.astype(np.int16)}, "array images is of int16: save"),
        ({"images": PIXELS.astype(bool)}, "array images is of bool: save"),
        ({"images": PIXELS[0, 0]}, "has the shape 4 x 3: save N x H x W or N x H x W x 1, 3 or 4"),
        ({"images": np.zeros((2, 3, 8, 8), np.uint8)}, "has the shape 2 x 3 x 8 x 8: save"),
        ({"images": np.zeros((2, 4, 4, 2), np.uint8)}, "has the shape 2 x 4 x 4 x 2: save"),
        ({"images": np.zeros((2, 0, 4), np.uint8)}, "has the shape 2 x 0 x 4: save"),
        ({"images": np.array(7, np.uint8)}, "has the shape : save"),
        ({"images": np.asfortranarray(PIXELS)}, "in Fortran's order: save it with `numpy.ascontiguousarray`"),
        ({"images": np.zeros((0, 4, 4), np.uint8)}, "has no image in one of the arrays images, train_images, .*: name"),
        ({"pictures": PIXELS}, "has no image in one of the arrays images, train_images, .*: name one so"),
        (
            {"images": PIXELS, "labels": np.arange(4)},
            "array labels has the shape 4 and is of int64: save one whole num",
        ),
        ({"images": PIXELS, "labels": np.eye(5)}, "array labels has the shape 5 x 5 and is of float64: save one whole"),
        ({"images": PIXELS, "labels": np.ones(5)}, "array labels has the shape 5 and is of float64: save one whole nu"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], sentence: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=rf"ingest\.source\.path is .*a\.npz, wh.* {sentence}"):
        Arrays(tmp_path / "a.npz").items()


class Runs:
    """An object that makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["images", "labels"])
def test_objects_are_refused_and_not_unpickled(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "unpickled"
    objects = np.array([Runs(marker)] * 5, dtype=object)
    np.savez(tmp_path / "a.npz", allow_pickle=True, **{"images": PIXELS, name: objects})
    with pytest.raises(UserError, match=f"array {name} is of Python objects, which could run code: save numbers"):
        Arrays(tmp_path / "a.npz").items()
    np.save(tmp_path / "a.npy", objects)
    with pytest.raises(UserError, match="of Python objects, which could run code"):
        Arrays(tmp_path / "a.npy").items()
    assert not marker.exists()
    # The control: this way runs it.
    np.load(tmp_path / "a.npy", allow_pickle=True)
    assert marker.exists()


def npy(shape: tuple[int, ...], content: bytes = b"", descr: object = "|u1") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue() + content


def zipped(content: bytes, name: str = "images.npy", is_twice: bool = False) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr(name, content)
        if is_twice:
            with pytest.warns(UserWarning, match="Duplicate name"):
                target.writestr(name, content)
    return file.getvalue()


def overwritten(content: bytes) -> bytes:
    return content[: len(content) // 2] + b"\xff" * 9 + content[len(content) // 2 + 9 :]


DAMAGED = {
    "empty": b"",
    "a page": b"<!DOCTYPE html><html>not here</html>",
    "a pickle": b"\x80\x04\x95\x00\x00",
    "cut within the header": npy((5, 4, 4))[:40],
    "cut within the pixels": npy((5, 4, 4), bytes(79)),
    "too long": npy((5, 4, 4), bytes(81)),
    "more than there is": npy((10**12, 4, 4), bytes(80)),
    "negative": npy((-5, -16), bytes(80)),
    "structs": npy((5,), bytes(80), [("a", "|u1")]),
    "code for a header": b"\x93NUMPY\x01\x00" + b"\x30\x00" + b"__import__('os').system('touch x')".ljust(47) + b"\n",
    "a version of later": b"\x93NUMPY\x09\x00" + npy((5, 4, 4), bytes(80))[8:],
    "zip of a page": zipped(b"<html>"),
    "zip cut off": zipped(npy((5, 4, 4), bytes(80)))[:-30],
    "zip of more than there is": zipped(npy((10**12, 4, 4), bytes(80))),
    "zip with an array twice": zipped(npy((5, 4, 4), bytes(80)), is_twice=True),
    "zip overwritten": overwritten(zipped(npy((50, 9, 9), np.random.default_rng(0).bytes(4050)))),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damage_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npz, which is damaged or no such file \([^)]"):
        read(Arrays(tmp_path / "a.npz"))


def test_a_bomb_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MOST_BYTES", 2**10)
    content = zipped(npy((1, 2**10, 2**10), bytes(2**20)))
    assert len(content) < 2**12
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match="has 'images' of 1,048,576 bytes, more than 1,024: take it out"):
        Arrays(tmp_path / "a.npz").items()


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ingest\.source\.path is .*a\.npz, which cannot be read \(No such file"):
        Arrays(tmp_path / "a.npz").items()


@pytest.mark.parametrize("after", [{"images": PIXELS[:3]}, {"arr_0": PIXELS}])
def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path, after: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS)
    source = Arrays(tmp_path / "a.npz")
    items = source.items()
    np.savez(tmp_path / "a.npz", **after)
    with pytest.raises(UserError, match="which changed while it was read: run the stage again"):
        list(source.contents(items, items))


def test_only_a_changed_file_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    any_date_is_certain(monkeypatch)
    for pixels in (PIXELS, PIXELS, 255 - PIXELS):
        if pixels is not PIXELS or not Path("a.npz").exists():
            np.savez(tmp_path / "a.npz", images=pixels)
        np.testing.assert_array_equal(decoded(ingested(kind="arrays", path="a.npz")), pixels)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith("are new")]
    assert lines == [f"ingest: {new} of 5 images are new" for new in (5, 0, 5)]
