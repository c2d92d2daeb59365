"""The digits on the disk are scikit-learn's."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from diffusion_core.data.sources.digits import Digits


def test_files_hold_the_images_in_one_folder_a_class(tmp_path: Path) -> None:
    assert Digits().fetch(tmp_path) == 1797
    digits = load_digits()
    files = sorted(tmp_path.rglob("*.png"), key=lambda file: file.stem)
    assert [int(file.parent.name) for file in files] == digits.target.tolist()
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    assert (pixels.shape, pixels.dtype) == ((1797, 8, 8), np.uint8)
    # 17 shades, spread over the whole range and told apart.
    np.testing.assert_array_equal(np.rint(pixels / 255 * 16), digits.images)
    assert (pixels.min(), pixels.max(), len(np.unique(pixels))) == (0, 255, 17)


def test_twice_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        Digits().fetch(tmp_path / name)
        files = sorted(file for file in (tmp_path / name).rglob("*") if file.is_file())
        contents.append([(file.relative_to(tmp_path / name), file.read_bytes()) for file in files])
    assert contents[0] == contents[1]
