import subprocess
import sys

import numpy as np
import pytest

from diffusion_core.plots import FLOOR_COLOUR, SAMPLES_COLOUR, distances, nearest_images, real_and_generated


def pixels_of(image, colour):
    """How many pixels have this colour, given as #rrggbb."""
    return int((np.asarray(image) == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=2).sum())


def test_bars_are_as_high_as_the_figures():
    image = distances({"samples": 9.0, "frechet": 4.0, "frechet_floor": 1.0})
    ratio = pixels_of(image, SAMPLES_COLOUR) / pixels_of(image, FLOOR_COLOUR)
    assert ratio == pytest.approx(4.0, rel=0.05)


def test_every_figure_with_a_floor_has_a_panel_and_others_have_none():
    one = {"frechet": 4.0, "frechet_floor": 1.0, "frechet_ratio": 4.0}
    two = one | {"kernel": 0.1, "kernel_floor": -0.01}
    assert distances(one).width < distances(two).width
    assert distances(one | {"samples": 5.0}).width == distances(one).width


def of_colour(colour, *shape):
    """Images that are nothing but one colour, which no text has."""
    return np.broadcast_to(np.array(colour, np.uint8), (*shape, 3))


def test_real_images_are_left_and_generated_ones_right():
    red, blue = (255, 0, 0), (0, 0, 255)
    page = np.asarray(real_and_generated(of_colour(red, 64, 16, 16), of_colour(blue, 64, 16, 16)))
    left, right = np.split(page, 2, axis=1)
    for half, here, elsewhere in ((left, red, blue), (right, blue, red)):
        assert (half == here).all(axis=2).mean() > 0.7
        assert not (half == elsewhere).all(axis=2).any()


def test_gray_images_stay_gray():
    page = np.asarray(real_and_generated(np.full((9, 8, 8, 1), 77, np.uint8), np.full((9, 8, 8, 1), 77, np.uint8)))
    assert (page == 77).all(axis=2).mean() > 0.7


@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_each_sample_has_its_neighbours_at_the_same_height(count):
    colours = [(255, 10 * index, 0) for index in range(count)]
    samples = np.stack([of_colour(colour, 8, 8) for colour in colours])
    neighbours = np.stack([of_colour(colour, 5, 8, 8) for colour in colours])
    page = np.asarray(nearest_images(samples, neighbours))
    corners = []
    for colour in colours:
        rows, columns = (page == colour).all(axis=2).nonzero()
        # Six tiles side by side, which are wider than five of them are high.
        assert np.ptp(columns) > 5 * np.ptp(rows)
        corners.append((columns.min() > page.shape[1] / 2, rows.min()))
    # Down the left half, then down the right one.
    assert corners == sorted(set(corners))


def test_the_font_cache_stays_in_the_working_folder(tmp_path):
    script = "import diffusion_core.plots, matplotlib; print(matplotlib.get_cachedir())"
    environment = {"HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(tmp_path / ".cache" / "matplotlib")
    assert not (tmp_path / "home").exists()
