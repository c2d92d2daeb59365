"""The page of a run shows what the run made, needs nothing else, and is stored with the run."""

import json
import re
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_core.config.params import load_settings
from diffusion_core.errors import UserError
from diffusion_core.lineage.evaluation import FiguresOrigin
from diffusion_core.pictures import grid, tiles
from diffusion_core.registry.champions import CHAMPION_BEFORE, DECISION
from diffusion_core.report.curves import chart, read_points
from diffusion_core.report.page import metric_rows
from diffusion_core.stages import promote, report
from diffusion_core.stages.cost import Cost, record_cost, seconds_of
from diffusion_core.stages.paths import METRICS_ORIGIN, PROMOTION, REPORT, SAMPLES
from tests.data.test_report import CHROMIUM, Parsed
from tests.report.conftest import ON_CPU, shown


def page():
    return Parsed(REPORT.read_text(encoding="utf-8"))


def text(parsed):
    return " ".join(" ".join(parsed.text).split())


def test_it_shows_samples_metrics_curves_and_the_decision():
    parsed = page()
    words = text(parsed)
    assert json.loads(PROMOTION.read_text())["sentence"] in words
    assert "diffusion, version 2" in words
    evaluation = FiguresOrigin.read(METRICS_ORIGIN, "evaluate").evaluation
    for name in evaluation.estimates:
        assert name.replace("_", " ") in words
    # 40 samples of 10 classes, and five other pictures.
    assert len(parsed.all("img")) == 40 + 5
    # Four charts, and five keys of the curves of validation.
    assert len(parsed.all("svg")) == 4 + 5
    assert "all timesteps quarter 1 quarter 2 quarter 3 quarter 4" in words
    assert all(each["alt"] for each in parsed.all("img"))
    assert "Of 40 samples, 40 were compared" in words


def test_it_says_what_the_run_cost():
    words = text(page())
    assert re.search(r"sampling [\d.]+ s evaluation [\d.]+ s share of sampling and evaluation \d+% of the run", words)
    # The times of another machine's outputs are not known.
    Path(".cache/seconds/sample.json").unlink()
    report.run(ON_CPU)
    assert "share of sampling" not in text(page())
    samples = SAMPLES / "samples.npy"
    record_cost("sample", samples, Cost(torch.device("cpu"), earlier={"seconds": 3.0}))
    assert seconds_of("sample", samples) == pytest.approx(3.0, abs=1.0)
    samples.write_bytes(samples.read_bytes()[:-1])
    assert seconds_of("sample", samples) is None


def test_it_says_what_differs_from_the_champion():
    words = text(page())
    assert "What differs from the champion" in words
    assert "train.learning_rate 0.001 0.002" in words
    assert "train.batch_size" not in words


def test_it_needs_nothing_else():
    content = REPORT.read_text(encoding="utf-8")
    assert "default-src 'none'" in content
    assert "<script" not in content
    assert all(each["src"].startswith("data:image/") for each in page().all("img"))
    assert len(content) < 2_000_000


def test_the_run_in_mlflow_has_it():
    client = mlflow.MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")
    version = client.get_model_version("diffusion", "2")
    assert version.tags[CHAMPION_BEFORE] == "1"
    assert REPORT.name in [file.path for file in client.list_artifacts(version.run_id)]


def test_a_second_run_without_news_shows_the_same_decision():
    before = text(page())
    settings = load_settings()
    few = settings.sample.model_copy(update={"count": 40})
    gate = settings.promote.model_copy(update={"limits": {}})
    promote.run(gate, few, settings.evaluate, ON_CPU)
    report.run(ON_CPU)
    assert text(page()) == before


def test_a_decision_on_other_metrics_is_not_shown():
    client = mlflow.MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")
    client.delete_model_version_tag("diffusion", "2", DECISION)
    report.run(ON_CPU)
    assert "The gate has not decided on this model yet" in text(page())


def test_metrics_of_another_model_are_not_its_page():
    origin = FiguresOrigin.read(METRICS_ORIGIN, "evaluate")
    origin.model_copy(update={"model_digest": "another"}).write(METRICS_ORIGIN)
    before = REPORT.read_bytes()
    with pytest.raises(UserError, match=r"metrics/evaluate.json was measured of another model"):
        report.run(ON_CPU)
    assert REPORT.read_bytes() == before


@pytest.mark.parametrize("gone", ["version", "run"])
def test_without_the_champion_before_the_page_has_no_changes(gone):
    client = mlflow.MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")
    first = client.get_model_version("diffusion", "1")
    if gone == "version":
        client.delete_model_version("diffusion", "1")
    else:
        # As `mlflow gc` leaves it.
        client._tracking_client.store._hard_delete_run(first.run_id)
    report.run(ON_CPU)
    assert "What differs from the champion" not in text(page())


def test_a_model_that_is_not_published_is_told():
    before = REPORT.read_bytes()
    with pytest.raises(UserError, match="models is not published: run `python -m diffusion_core publish`"):
        report.run(ON_CPU.model_copy(update={"registered_model": "other"}))
    assert REPORT.read_bytes() == before


INPUTS = ["samples/samples.npy", "samples/denoising.png", "plots/nearest.png"]
INPUTS += ["plots/loss.csv", "plots/validation.csv", "metrics/origin.json"]


@pytest.mark.parametrize("file", [*INPUTS, "metrics/data.json"])
@pytest.mark.parametrize("content", [None, b"", b"x"])
def test_a_missing_or_damaged_input_is_told_with_its_stage(file, content):
    Path(file).unlink()
    if content is not None:
        Path(file).write_bytes(content)
    with pytest.raises(UserError, match=rf"{file} is (missing|damaged).*`dvc repro"):
        report.run(ON_CPU)


def test_rows_have_the_interval_of_the_pairs():
    evaluation = FiguresOrigin.read(METRICS_ORIGIN, "evaluate").evaluation
    (row, *_) = metric_rows(evaluation, evaluation)
    assert row.champion == row.value.split()[0]
    assert row.change == "+0 ± 0"
    assert metric_rows(evaluation, None)[0].champion == ""


@pytest.mark.parametrize(("height", "width", "channels"), [(8, 8, 1), (16, 24, 3), (96, 64, 4)])
def test_tiles_undo_a_grid(height, width, channels):
    images = np.random.default_rng(0).integers(0, 256, (6, height, width, channels), dtype=np.uint8)
    images[..., 3:] = np.random.default_rng(1).choice([0, 255], (6, 1, 1, max(0, channels - 3)))
    found = tiles(grid(images, columns=3), height, width)
    assert found.shape[:2] == (2, 3)
    factor = found.shape[2] // height
    small = found[:, :, ::factor, ::factor].reshape(6, height, width, 3)
    # What is transparent is white.
    shown = np.where(images[..., 3:] == 0, 255, images[..., :3]) if channels == 4 else images
    np.testing.assert_array_equal(small, np.broadcast_to(shown, small.shape))


def test_the_denoising_moves():
    import base64
    import io

    (moving,) = [each for each in page().all("img") if each["alt"] == "The same samples, animated"]
    with Image.open(io.BytesIO(base64.b64decode(moving["src"].partition(",")[2]))) as image:
        assert image.n_frames == 5
        assert image.width > 4 * image.height


def test_a_curve_ends_at_the_last_row(tmp_path):
    file = tmp_path / "loss.csv"
    file.write_text("images,loss,grad_norm,learning_rate\n100,4.0,,0.1\n200,2.0,,0.1\n400,1.0,,0.1\n")
    points = read_points(file, ("loss", "grad_norm"))
    assert points == {"loss": [(100, 4), (200, 2), (400, 1)], "grad_norm": []}
    with pytest.raises(ValueError, match="it has no column x"):
        read_points(file, ("x",))
    loss = chart("Loss", "images", list(points.items()))
    (path,) = loss.paths.values()
    assert path.startswith("M 80.0 4.0 L 160.0 ")
    assert path.endswith(" L 320.0 116.0")
    assert (loss.low, loss.high, loss.end) == ("1", "4", "400 images")
    assert loss.text == "loss: from 4 to 1 after 400 images"


def test_curves_of_a_chart_have_common_axes_and_keep_their_numbers():
    nan = float("nan")
    curves = [("a", [(1, nan)]), ("b", [(1, 4), (2, nan), (4, 2)]), ("c", [(1, 2), (8, 0)]), ("d", [])]
    found = chart("Loss", "seconds", curves)
    assert found.paths == {2: "M 40.0 4.0 L 160.0 60.0", 3: "M 40.0 60.0 L 320.0 116.0"}
    assert found.names == {2: "b", 3: "c"}
    assert (found.low, found.high, found.end) == ("0", "4", "8 seconds")
    assert chart("Loss", "seconds", [("a", []), ("b", [(1, nan), (2, nan)])]) is None


def test_one_value_alone_is_a_square():
    found = chart("Loss", "seconds", [("a", [(4, 2)]), ("b", [(0, 1), (8, 3)])])
    assert found.paths[1] == "M 160.0 60.0 h -4.0 v -4.0 h 4.0 z"
    assert found.text.startswith("a: 2 after 4 seconds; b: from 1 to 3 after 8 seconds")
    near = chart("Loss", "seconds", [("a", [(0, 2)]), ("b", [(0, 1), (8, 3)])])
    assert near.paths[1] == "M 0.0 60.0 h 4.0 v -4.0 h -4.0 z"


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_it_on_a_phone_and_a_desk_without_scrolling_sideways(width, tmp_path):
    scroll, broken = shown(REPORT, width, tmp_path)
    assert scroll <= width
    assert broken == 0
