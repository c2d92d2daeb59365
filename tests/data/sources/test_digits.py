"""The digits are scikit-learn's."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import IngestSettings
from diffusion_core.data.sources.digits import Digits
from diffusion_core.stages import ingest
from tests.data.packed import packs, unpacked


def read() -> dict[str, bytes]:
    items = Digits().items()
    return dict(zip([item.path for item in items], Digits().contents(items), strict=True))


def test_files_hold_the_images_in_one_folder_a_class() -> None:
    files = read()
    assert [*files] == sorted(files)
    assert len(files) == 1797
    digits = load_digits()
    ordered = sorted(files, key=lambda path: Path(path).stem)
    assert [int(Path(path).parent.name) for path in ordered] == digits.target.tolist()
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(files[path]))) for path in ordered])
    assert (pixels.shape, pixels.dtype) == ((1797, 8, 8), np.uint8)
    # 17 shades, spread over the whole range and told apart.
    np.testing.assert_array_equal(np.rint(pixels / 255 * 16), digits.images)
    assert (pixels.min(), pixels.max(), len(np.unique(pixels))) == (0, 255, 17)


def test_twice_the_same_bytes() -> None:
    assert read() == read()


def test_a_part_of_them_can_be_read_alone() -> None:
    files, items = read(), Digits().items()[5:9]
    assert [*Digits().contents(items)] == [files[item.path] for item in items]


def test_a_second_ingest_brings_nothing_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = IngestSettings.model_validate({"source": {"kind": "digits"}})
    ingest.run(settings, Environment())
    raw = Path("data/raw")
    first = unpacked(raw), packs(raw)
    assert len(first[0]) == 1797
    capsys.readouterr()
    ingest.run(settings, Environment())
    assert (unpacked(raw), packs(raw)) == first
    assert capsys.readouterr().out == "ingest: 0 of 1,797 images are new\ningest: 1,797 images in data/raw\n"
