"""Images of any model by one command: the pipeline's own, of an image, inside a mask, and strips."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_core.__main__ import main
from diffusion_core.config.environment import load_environment
from diffusion_core.generation import generate
from diffusion_core.lineage.model_files import model_digest
from diffusion_core.lineage.saved_model import load_model
from diffusion_core.pictures import grid
from diffusion_core.registry.champions import CHAMPION
from diffusion_core.registry.connection import connect
from diffusion_core.samplers.ddim import DDIM
from diffusion_core.samplers.guidance import Guidance
from diffusion_core.stages import draw, publish
from tests.registry import projects

STEPS = ("--steps", "4")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        projects.write_project(folder)
        environment = projects.new_environment(folder)
        publish.run(environment)
        client = connect(environment)
        client.set_registered_model_alias(environment.registered_model, CHAMPION, "1")
    return folder


@pytest.fixture
def say(published, tmp_path, monkeypatch):
    """Return a function that runs `diffusion draw` beside the model, and returns its exit code."""
    shutil.copytree(published / "models", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    for name, value in (
        ("DIFFUSION_TRACKING_URI", f"sqlite:///{published}/mlflow.db"),
        ("DIFFUSION_DEVICE", "cpu"),
        ("DIFFUSION_PRECISION", "float32"),
    ):
        monkeypatch.setenv(name, value)

    def say(*arguments):
        monkeypatch.setattr(sys, "argv", ["diffusion", "draw", *map(str, arguments)])
        try:
            main()
        except SystemExit as left:
            return left.code or 0
        return 0

    return say


def model():
    return load_model("models")


def expected(count, *, seed=0, labels=None, scale=1.0):
    loaded = model()
    images, _ = generate(
        loaded.diffusion,
        count,
        seed=seed,
        sampler=DDIM(steps=4),
        guidance=Guidance(scale),
        labels=loaded.labels(count) if labels is None else labels,
    )
    return images


def array(*arguments, say):
    assert say(*arguments, *STEPS, "--out", "images.npy") == 0
    return np.load("images.npy")


@pytest.mark.parametrize("name", ["models", "champion", "1", "diffusion@champion", "diffusion/1", "run"])
def test_the_images_are_those_of_the_pipeline_by_every_name(say, name):
    if name == "run":
        name = connect(load_environment()).get_model_version("diffusion", "1").run_id
    np.testing.assert_array_equal(array(name, "--n", 5, "--seed", 3, say=say), expected(5, seed=3))


def test_class_and_guidance_are_those_that_were_asked_for(say):
    found = array("models", "--n", 3, "--class", "2", "--guidance", "2.5", say=say)
    np.testing.assert_array_equal(found, expected(3, labels=[2] * 3, scale=2.5))


def test_each_file_says_how_it_was_made(say):
    assert say("champion", "--n", 3, "--class", "1", "--seed", 7, *STEPS, "--out", "drawn/new") == 0
    files = sorted(Path("drawn/new").iterdir())
    assert [file.name for file in files] == ["00000.png", "00001.png", "00002.png"]
    images = expected(3, seed=7, labels=[1] * 3)
    for index, file in enumerate(files):
        with Image.open(file) as picture:
            np.testing.assert_array_equal(np.asarray(picture), images[index, ..., 0])
            about = json.loads(picture.text["diffusion"])
        assert (about["model"], about["seed"], about["index"], about["class"]) == ("diffusion/1", 7, index, "1")
        # The same model whatever the alias will mean.
        assert about["digest"] == model_digest(Path("models"))
        assert about["sampler"]["steps"] == 4
        assert about["guidance"]["scale"] == 1.0


def test_a_grid_is_one_picture(say):
    assert say("models", "--n", 12, *STEPS, "--out", "grid.png") == 0
    np.testing.assert_array_equal(np.asarray(Image.open("grid.png")), np.asarray(grid(expected(12), columns=10)))
    about = json.loads(Image.open("grid.png").text["diffusion"])
    assert (about["model"], about["digest"], about["n"]) == ("models", model_digest(Path("models")), 12)


def picture(file, value, size=(8, 8)):
    Image.new("L", size, value).save(file)


def test_an_image_is_drawn_again_the_freer_the_more_noise_it_gets(say):
    picture("gray.png", 200, size=(64, 64))
    near, far = (
        np.abs(array("models", "--image", "gray.png", "--strength", each, "--n", 8, say=say) - 200.0).mean()
        for each in (0.01, 1.0)
    )
    assert near + 20 < far


def test_what_a_mask_hides_is_drawn_and_the_rest_stays(say):
    picture("gray.png", 200)
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    Image.fromarray(mask).save("mask.png")
    found = array("models", "--image", "gray.png", "--mask", "mask.png", "--n", 4, say=say)
    np.testing.assert_array_equal(found[:, :, :4], 200)
    assert np.ptp(found[:, :, 4:]) > 20


def test_a_strip_goes_from_the_image_of_one_seed_to_that_of_another(say):
    found = array("models", "--n", 9, "--class", "0", "--seed", 3, "--to", 8, say=say)
    for place, seed in ((0, 3), (-1, 8)):
        ends = expected(1, seed=seed, labels=[0])[0].astype(int)
        assert np.abs(found[place].astype(int) - ends).max() <= 1
    steps = np.abs(np.diff(found.astype(float), axis=0)).mean(axis=(1, 2, 3))
    assert steps.max() < np.abs(found[0].astype(float) - found[-1]).mean()


def test_a_strip_is_of_one_class(say):
    found = array("models", "--n", 9, "--seed", 3, "--to", 8, say=say)
    named = model().class_names[model().labels(9)[0]]
    np.testing.assert_array_equal(found, array("models", "--n", 9, "--class", named, "--seed", 3, "--to", 8, say=say))


def test_noises_of_a_strip_are_noise():
    request = draw.Request(11, None, 1, DDIM(), Guidance(), to_seed=2)
    strip = draw._strip(request, (1, 64, 64))
    assert strip.shape == (11, 1, 64, 64)
    torch.testing.assert_close(strip.flatten(1).std(dim=1), torch.ones(11), rtol=0.05, atol=0)
    same = draw._strip(draw.Request(3, None, 1, DDIM(), Guidance(), to_seed=1), (1, 8, 8))
    assert torch.equal(same[0], same[2])
    assert torch.isfinite(same).all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["models", "--n", 0], "--n is 0: it must be at least 1"),
        (["models", "--n", 10**12], "MB of memory are free: sample fewer at a time"),
        (["models", "--seed", -1], "a seed is negative"),
        (["models", "--class", "cat"], "the model has no class 'cat'"),
        (["models", "--class", "10"], "the model has no class '10': it has 0, 1, 2"),
        (["models", "--steps", 9], "models cannot be sampled like this: steps is 9"),
        (["models", "--steps", 0], "steps is 0"),
        (["models", "--sampler", "ddpn"], "--sampler is 'ddpn'; it must be one of ddim, ddpm"),
        (["models", "--guidance", -1], "guidance.scale is -1"),
        (["models", "--guidance", "nan"], "guidance.scale is nan"),
        (["models", "--strength", 0], "--strength is 0.0"),
        (["models", "--mask", "m.png"], "--mask has no image"),
        (["models", "--to", 2, "--image", "i.png"], "exclude each other"),
        (["models", "--to", 2, "--n", 1], "--to needs at least two images"),
        (["models", "--image", "no.png"], "no.png cannot be read (No such file or directory)"),
        (["models", "--image", "models/model.json"], "model.json is not an image that decodes"),
        (["9"], "diffusion has no version 9 in this store: its versions are 1 (champion); there is no folder 9 either"),
        (["challenger"], "diffusion has no alias challenger"),
        (["other@champion"], "other has no alias champion"),
        (["../x"], "has no alias x"),
        (["diffusion@"], "names no version"),
        (["."], ". has no model.json"),
        (["unknown/1"], "unknown has no version 1 in this store: name one of diffusion"),
        (["models", "--out", "x.jpg"], "--out is x.jpg: name a folder, or a file *.png (a grid) or *.npy (an array)"),
        (["models", "--out", "x.NPZ"], "--out is x.NPZ: name a folder"),
        (["models", "--out", "x.PNG"], "--out is x.PNG: name a folder"),
        (["models", "--out", "x.Npy"], "--out is x.Npy: name a folder"),
        (["9" * 20], f"diffusion has no version {'9' * 20} in this store: its versions are 1 (champion)"),
    ],
)
def test_a_wrong_request_is_one_sentence_and_leaves_nothing(say, capsys, arguments, sentence):
    assert say(*arguments) == 2
    message = capsys.readouterr().err
    assert sentence in message
    assert len(message.strip().splitlines()) == 1
    assert not Path("drawn").exists()


@pytest.mark.parametrize("name", ["~nobody-of-this-name/models", "x" * 300])
def test_what_can_be_no_folder_is_looked_for_in_the_store(say, capsys, name):
    assert say(name) == 2
    assert "in this store" in capsys.readouterr().err


def test_a_folder_with_files_is_not_touched(say, capsys):
    Path("drawn").mkdir()
    Path("drawn/mine.png").write_bytes(b"mine")
    assert say("models") == 2
    assert "drawn has files already: name another folder with --out" in capsys.readouterr().err
    assert [file.name for file in Path("drawn").iterdir()] == ["mine.png"]
