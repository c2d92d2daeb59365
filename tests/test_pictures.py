import numpy as np
import pytest
from PIL import Image

from diffusion_core.pictures import GAP, grid, save


@pytest.mark.parametrize(
    ("height", "width", "factor"),
    [(8, 8, 8), (16, 16, 4), (48, 48, 1), (100, 100, 1), (8, 16, 4), (16, 8, 4), (3, 100, 1), (100, 3, 1)],
)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_pixel_is_in_its_place(height, width, factor, channels):
    images = np.random.default_rng(0).integers(0, 256, (5, height, width, channels), dtype=np.uint8)
    sheet = grid(images, columns=3)
    assert sheet.mode == {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    down, right = height * factor + GAP, width * factor + GAP
    assert sheet.size == (3 * right + GAP, 2 * down + GAP)
    pixels = np.asarray(sheet).reshape(sheet.height, sheet.width, channels)
    for index, image in enumerate(images):
        top, left = (index // 3) * down + GAP, (index % 3) * right + GAP
        tile = pixels[top : top + height * factor, left : left + width * factor]
        for y, x in ((0, 0), (factor - 1, factor - 1)):
            np.testing.assert_array_equal(tile[y::factor, x::factor], image)
    # What no image fills is white, and nothing shines through it.
    assert (pixels[down:, 2 * right :] == 255).all()
    assert (pixels[:GAP] == 255).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_saved_picture_is_read_back(tmp_path, channels):
    image = grid(np.random.default_rng(0).integers(0, 256, (4, 8, 8, channels), dtype=np.uint8), 2)
    save(image, tmp_path / "new" / "grid.png")
    with Image.open(tmp_path / "new" / "grid.png") as read:
        assert read.format == "PNG"
        np.testing.assert_array_equal(np.asarray(read), np.asarray(image))
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["grid.png"]


def test_a_picture_that_cannot_be_written_leaves_the_one_before(tmp_path):
    file = tmp_path / "grid.png"
    file.write_bytes(b"before")
    with pytest.raises(OSError, match="cannot write mode"):
        save(Image.new("HSV", (8, 8)), file)
    assert file.read_bytes() == b"before"


def test_a_picture_that_cannot_be_put_in_its_place_leaves_nothing(tmp_path):
    (tmp_path / "grid.png").mkdir()
    with pytest.raises(OSError, match=r"grid\.png"):
        save(Image.new("L", (8, 8)), tmp_path / "grid.png")
    assert [left.name for left in tmp_path.iterdir()] == ["grid.png"]
