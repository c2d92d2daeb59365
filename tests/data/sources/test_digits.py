"""The digits as files are scikit-learn's."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from diffusion_core.data.sources import digits
from diffusion_core.data.sources.digits import Digits


def files(wanted: slice = slice(None)) -> dict[str, bytes]:
    items = Digits().items()
    paths = [item.path for item in items[wanted]]
    return dict(zip(paths, Digits().contents(items[wanted], items), strict=True))


def test_files_hold_the_images_in_one_folder_a_class() -> None:
    assert len(files()) == 1797
    original = load_digits()
    found = sorted(files().items(), key=lambda file: file[0].partition("/")[2])
    assert [int(path.partition("/")[0]) for path, _ in found] == original.target.tolist()
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(content))) for _, content in found])
    assert (pixels.shape, pixels.dtype) == ((1797, 8, 8), np.uint8)
    # 17 shades, spread over the whole range and told apart.
    np.testing.assert_array_equal(np.rint(pixels / 255 * 16), original.images)
    assert (pixels.min(), pixels.max(), len(np.unique(pixels))) == (0, 255, 17)


def test_twice_the_same_bytes_and_some_are_those_of_all() -> None:
    whole = files()
    assert files() == whole
    some = files(slice(5, 1000, 7))
    assert len(some) > 100
    assert some.items() <= whole.items()


def test_another_version_of_what_makes_them_makes_them_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stamp = Digits().items()[0].stamp
    assert {item.stamp for item in Digits().items()} == {stamp}
    monkeypatch.setattr(digits, "version", lambda name: "0")
    assert Digits().items()[0].stamp != stamp
