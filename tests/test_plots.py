import subprocess
import sys

import numpy as np
import pytest

from diffusion_core.metrics.estimate import Estimate
from diffusion_core.plots import COLOURS, distances, nearest_images, real_and_generated

RED, BLUE = (255, 0, 0), (0, 0, 255)


def pixels_of(image, colour):
    """How many pixels have this colour, given as #rrggbb."""
    return int((np.asarray(image) == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=2).sum())


def of(value, floor, ceiling=0.0):
    return Estimate(value=value, replicates=(value, value), floor=floor, ceiling=ceiling)


def test_bars_are_as_high_as_the_figures():
    image = distances({"frechet": of(4.0, 1.0, 8.0)})
    generated, real, noise = (pixels_of(image, colour) for colour in COLOURS)
    assert generated / real == pytest.approx(4.0, rel=0.05)
    assert noise / generated == pytest.approx(2.0, rel=0.05)


def test_the_bar_of_noise_does_not_flatten_the_others():
    image, low = (distances({"frechet": of(4.0, 1.0, ceiling)}) for ceiling in (4000.0, 0.0))
    assert pixels_of(image, COLOURS[2]) == 0
    assert pixels_of(image, COLOURS[0]) > 5000
    # In its place stand the number and why: more than the number 0.
    dark = [int((np.asarray(each)[:, -each.width // 3 :] < 100).all(axis=2).sum()) for each in (image, low)]
    assert dark[0] > 1.5 * dark[1]


def test_an_interval_is_drawn_about_the_figure():
    narrow, wide = (
        Estimate(value=4.0, replicates=tuple(4.0 + width * (-1) ** n for n in range(20)), floor=1.0, ceiling=0.0)
        for width in (0.0, 0.2)
    )
    dark = [int((np.asarray(distances({"x": each})) < 100).all(axis=2).sum()) for each in (narrow, wide)]
    assert dark[1] > dark[0] + 50


def test_every_figure_has_a_panel_five_in_a_row():
    sizes = [distances({f"x{n}": of(4.0, 1.0) for n in range(count)}).size for count in (1, 5, 6)]
    assert sizes[0][0] < sizes[1][0] == sizes[2][0]
    assert sizes[0][1] == sizes[1][1] < sizes[2][1]


def of_colour(colour, *shape):
    """Images that are nothing but one colour, which no text has."""
    return np.broadcast_to(np.array(colour, np.uint8), (*shape, 3))


def test_real_images_are_left_and_generated_ones_right():
    page = np.asarray(real_and_generated(of_colour(RED, 64, 16, 16), of_colour(BLUE, 64, 16, 16)))
    left, right = np.split(page, 2, axis=1)
    for half, here, elsewhere in ((left, RED, BLUE), (right, BLUE, RED)):
        assert (half == here).all(axis=2).mean() > 0.7
        assert not (half == elsewhere).all(axis=2).any()


@pytest.mark.parametrize(("real", "generated"), [(64, 40), (40, 64)])
def test_of_unequal_numbers_as_many_are_shown_in_one_size(real, generated):
    page = real_and_generated(of_colour(RED, real, 16, 16), of_colour(BLUE, generated, 16, 16))
    assert pixels_of(page, "#ff0000") == pixels_of(page, "#0000ff") > 10_000


def test_gray_images_stay_gray():
    page = np.asarray(real_and_generated(np.full((9, 8, 8, 1), 77, np.uint8), np.full((9, 8, 8, 1), 77, np.uint8)))
    assert (page == 77).all(axis=2).mean() > 0.7


@pytest.mark.parametrize(
    ("alpha", "shown"), [(255, (200, 0, 0)), (51, (244, 204, 204)), (0, (255, 255, 255))]
)  # 255 + (200 - 255) / 5 and 255 - 255 / 5
@pytest.mark.parametrize(
    "page_of", [real_and_generated, lambda images, _: nearest_images(images, images[:, None])], ids=["both", "nearest"]
)
def test_what_is_transparent_shows_white_paper(page_of, alpha, shown):
    images = np.zeros((16, 8, 8, 4), np.uint8)
    images[:, :4] = 200, 0, 0, alpha
    page = np.asarray(page_of(images, images))
    assert (page == shown).all(axis=2).mean() > 0.15
    assert not (page == 0).all(axis=2).any()


@pytest.mark.parametrize(("height", "width"), [(8, 32), (32, 8), (4, 64)])
def test_rectangles_fill_the_page_as_squares_do(height, width):
    page = np.asarray(real_and_generated(of_colour(RED, 64, height, width), of_colour(BLUE, 64, height, width)))
    for colour in (RED, BLUE):
        rows, columns = (page == colour).all(axis=2).nonzero()
        assert np.ptp(rows) > 0.6 * page.shape[0]
        assert np.ptp(columns) > 0.3 * page.shape[1]


@pytest.mark.parametrize("count", [1, 2, 5, 16])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 16), (16, 8)])
def test_each_sample_has_its_neighbours_at_the_same_height(count, height, width):
    colours = [(255, 10 * index, 0) for index in range(count)]
    samples = np.stack([of_colour(colour, height, width) for colour in colours])
    neighbours = np.stack([of_colour(colour, 5, height, width) for colour in colours])
    page = np.asarray(nearest_images(samples, neighbours))
    corners = []
    for colour in colours:
        rows, columns = (page == colour).all(axis=2).nonzero()
        # Six tiles side by side, which are wider than five of them.
        assert np.ptp(columns) > 5 * np.ptp(rows) * width / height
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
