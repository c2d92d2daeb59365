"""The whole job on images that are no squares and have an alpha channel."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw

from diffusion_core.config.environment import Environment
from diffusion_core.config.params import load_settings
from diffusion_core.config.settings import IngestSettings
from diffusion_core.data.dataset import ImageDataset
from diffusion_core.data.sources.folder import Folder
from diffusion_core.errors import UserError
from diffusion_core.lineage.saved_model import load_model
from diffusion_core.stages import evaluate, ingest, prepare, reference, sample, train
from diffusion_core.stages.paths import METRICS, MODELS, PLOTS, PREPARED, REFERENCE, SAMPLES
from tests.registry.projects import new_environment
from tests.stages.conftest import TINY

COUNT = 48
HEIGHT, WIDTH = 8, 16


def draw_images(folder):
    """Write stickers of two classes on transparent ground: discs and bars, in landscape and in portrait."""
    random = np.random.default_rng(0)
    for number in range(COUNT):
        size = (40, 30) if number % 3 else (30, 40)
        image = Image.new("RGBA", size)
        kind = ("bar", "disc")[number % 2]
        shape = ImageDraw.Draw(image).ellipse if kind == "disc" else ImageDraw.Draw(image).rectangle
        left, top = random.integers(0, 10, 2).tolist()
        shape((left, top, left + 20, top + (20 if kind == "disc" else 8)), fill=(*random.integers(0, 256, 3), 255))
        (folder / kind).mkdir(parents=True, exist_ok=True)
        image.save(folder / kind / f"{number}.png")


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A folder of such images as the working directory, and settings for them."""
    content = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    content["prepare"] |= {"image_size": [HEIGHT, WIDTH], "color": "rgba"}
    content["reference"]["images"] = 500
    content["train"] |= TINY | {"images": 96, "horizontal_flip": True}
    content["train"]["network"] |= {"dim": 8}
    content["sample"] |= {"count": 12, "sampler": {"kind": "ddim", "steps": 3}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    draw_images(tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    ingest.run(IngestSettings(source=Folder(tmp_path / "pictures")), Environment())
    return load_settings()


@pytest.fixture
def environment(tmp_path):
    return new_environment(tmp_path).model_copy(update={"precision": "float32"})


def test_rectangles_with_alpha_go_through_every_stage(settings, environment):
    prepare.run(settings.prepare)
    dataset = ImageDataset.open(PREPARED)
    assert json.loads((PREPARED / "dataset.json").read_text())["image_size"] == [HEIGHT, WIDTH]
    assert dataset.images().shape == (COUNT, HEIGHT, WIDTH, 4)
    assert {0, 255} <= set(np.unique(dataset.images()[..., 3]))

    reference.run(settings.reference, environment)
    assert json.loads((REFERENCE / "reference.json").read_text())["network"]["image_size"] == [HEIGHT, WIDTH]

    train.run(settings.train, environment)
    assert json.loads((MODELS / "model.json").read_text())["process"]["image_size"] == [HEIGHT, WIDTH]
    assert load_model(MODELS).diffusion.image_size == (HEIGHT, WIDTH)
    (preview,) = Path().glob("ml*/**/*samples*training*.png")
    assert Image.open(preview).mode == "RGBA"

    sample.run(settings.sample, environment)
    images = np.load(SAMPLES / "samples.npy", allow_pickle=False)
    assert images.shape == (12, HEIGHT, WIDTH, 4)
    with Image.open(SAMPLES / "grid.png") as grid:
        # Ten columns and two rows.
        assert grid.mode == "RGBA"
        assert grid.width / grid.height == pytest.approx(10 * WIDTH / (2 * HEIGHT), rel=0.1)

    evaluate.run(settings.evaluate, environment)
    figures = json.loads(METRICS.read_text())
    assert figures["sample_count"] == 12
    assert figures["frechet_ratio"] > 0
    assert {"distances.png", "real_and_generated.png", "nearest.png"} <= {file.name for file in PLOTS.iterdir()}


def test_a_dataset_whose_width_does_not_suit_the_network_is_told(settings, environment):
    prepare.run(settings.prepare.model_copy(update={"image_size": (HEIGHT, WIDTH + 1)}))
    with pytest.raises(UserError, match=r"data/prepared are 8 x 17; .* each side must be a multiple of 2"):
        train.run(settings.train, environment)


def test_samples_that_lie_on_their_side_are_refused(settings, environment):
    prepare.run(settings.prepare)
    reference.run(settings.reference, environment)
    SAMPLES.mkdir()
    np.save(SAMPLES / "samples.npy", np.zeros((12, WIDTH, HEIGHT, 4), np.uint8))
    with pytest.raises(UserError, match=r"\(12, 16, 8, 4\) .* \(8, 16, 4\): .*`dvc repro sample`"):
        evaluate.run(settings.evaluate, environment)
