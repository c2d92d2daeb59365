"""Feature networks of others: right images go in, and the published distance comes out."""

import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import EvaluateSettings
from diffusion_core.errors import UserError
from diffusion_core.files import sha256_of
from diffusion_core.metrics import views
from diffusion_core.metrics.evaluation import Evaluator
from diffusion_core.metrics.extractors.imagenet import ImageNet
from diffusion_core.metrics.extractors.resized import Resized, resized
from diffusion_core.metrics.extractors.torchscript import TorchScript
from diffusion_core.metrics.features import extract
from diffusion_core.metrics.views import domain_view, other_views
from diffusion_core.stages import clean

ON_CPU = Environment(device="cpu")
SIZE = 13


class Small(nn.Module):
    """A network of the shape of StyleGAN's Inception: `layers` are called without scaling."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 10, 3, stride=2), nn.Tanh(), nn.AdaptiveAvgPool2d(1))

    def forward(self, images):
        return self.layers(images / 100.0)


@pytest.fixture
def script(tmp_path):
    file = tmp_path / "small.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Small().eval()).save(str(file))
    return file


def chosen(file, **options):
    return TorchScript(str(file), sha256_of(file), **{"size": SIZE, **options})


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("size", [(32, 32), (40, 24), (9, 64), (SIZE, SIZE)])
def test_images_are_resized_as_pillow_does_in_float32(size):
    """So does clean-fid, each channel as an image of mode F."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, *size), dtype=np.uint8)
    expected = [
        np.asarray(Image.fromarray(each.astype(np.float32)).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        for each in pixels
    ]
    found = resized(torch.from_numpy(pixels)[None].float(), SIZE)[0].numpy()
    np.testing.assert_allclose(found, np.clip(expected, 0, 255), atol=2e-3)


def test_without_antialiasing_it_would_be_another_image():
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 40, 40), dtype=np.uint8)).float()
    plain = nn.functional.interpolate(pixels, size=(SIZE, SIZE), mode="bicubic", align_corners=False)
    assert (plain.clamp(0, 255) - resized(pixels, SIZE)).abs().mean() > 5.0


@pytest.mark.parametrize(("submodule", "scale"), [("layers", 1.0), (None, 100.0)])
def test_a_torchscript_file_sees_what_its_options_say(script, submodule, scale):
    images = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
    network = chosen(script, submodule=submodule, mean=(10.0, 20.0, 30.0), std=(64.0, 32.0, 16.0)).load(ON_CPU)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    given = (pixels - torch.tensor([10.0, 20.0, 30.0]).view(1, 3, 1, 1)) / torch.tensor([64.0, 32.0, 16.0]).view(
        1, 3, 1, 1
    )
    with torch.inference_mode():
        expected = Small().eval().layers(given / scale).flatten(1)
    assert network.features == 10
    np.testing.assert_allclose(extract(network, images), expected.numpy(), atol=1e-5)


def test_gray_images_are_rgb_and_transparent_pixels_count_less(script):
    random = np.random.default_rng(0)
    network = chosen(script).load(ON_CPU)
    gray = random.integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    np.testing.assert_allclose(extract(network, gray), extract(network, gray.repeat(3, axis=3)), atol=1e-6)
    opaque = np.concatenate((gray.repeat(3, axis=3), np.full_like(gray, 255)), axis=3)
    np.testing.assert_allclose(extract(network, opaque), extract(network, gray), atol=1e-5)
    clear = np.concatenate((gray.repeat(3, axis=3), np.zeros_like(gray)), axis=3)
    np.testing.assert_allclose(extract(network, clear), extract(network, np.zeros_like(gray)), atol=1e-5)


class Whole(nn.Module):
    """What torchmetrics takes: uint8 images as they are."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images.float() / 127.5 - 1.0)


def test_the_distance_is_torchmetrics_fid_with_the_same_file(script, reference, train, validation):
    choice = chosen(script)
    settings = EvaluateSettings.model_validate(
        {
            "extractors": [{"kind": "torchscript", "file": str(script), "sha256": choice.sha256, "size": SIZE}],
            "metrics": [{"kind": "frechet"}],
        }
    )
    more = other_views(settings.extractors, train, validation, ON_CPU, torch.device("cpu"))
    samples = train.images(slice(0, 300)) // 2
    found = Evaluator([domain_view(reference), *more], train, validation, settings).evaluate(samples).estimates
    assert (
        [*found]
        == [*settings.names]
        == ["frechet", "frechet_ratio"] + [f"inception_{name}" for name in ("frechet", "frechet_ratio", "fid")]
    )

    metric = FrechetInceptionDistance(feature=Whole(choice.load(ON_CPU)), input_img_size=(3, 8, 8))
    metric.set_dtype(torch.float64)
    with torch.inference_mode():
        for images, real in ((train.images(), True), (samples, False)):
            metric.update(torch.from_numpy(images.repeat(3, axis=3)).permute(0, 3, 1, 2), real=real)
    assert found["inception_fid"].value == pytest.approx(float(metric.compute()), rel=1e-3)
    assert 100 * found["inception_fid"].floor < min(found["inception_fid"].value, found["inception_fid"].ceiling)


def test_features_of_the_real_images_are_computed_once_per_images_file_and_options(
    script, train, validation, monkeypatch
):
    made = []

    def counting(network, images, *more):
        made.append(len(images))
        return extract(network, images, *more)

    monkeypatch.setattr(views, "extract", counting)

    def run(**options):
        made.clear()
        (view,) = other_views([chosen(script, **options)], train, validation, ON_CPU, torch.device("cpu"))
        return view.train, [*made]

    first, counts = run()
    assert counts == [len(train), len(validation)]
    again, counts = run()
    assert counts == []
    np.testing.assert_array_equal(again, first)
    assert run(submodule=None)[1] == [len(train), len(validation)]
    (train_file, *_) = [file for file in Path(".cache/features").iterdir() if file.stat().st_size > 40_000]
    content = train_file.read_bytes()
    for damage in (b"", content[: len(content) // 2], content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]):
        for file in Path(".cache/features").iterdir():
            file.write_bytes(damage)
        assert run()[1] == [len(train), len(validation)]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"file": "missing.pt"}, "is missing.pt, which does not exist: correct its path"),
        ({"file": "~nosuchuser/x.pt"}, "is ~nosuchuser/x.pt, with the ~ of a user whom this machine does not know"),
        (
            {"sha256": "0" * 64},
            r"whose sha256 is [0-9a-f]{64}, where 0{64} is expected: correct its sha256",
        ),
        ({"submodule": "nothing"}, "which is not TorchScript that takes images of 13 x 13"),
        ({"size": 1}, "which is not TorchScript that takes images of 1 x 1"),
    ],
)
def test_a_file_that_cannot_be_used_is_told(script, options, sentence):
    whole = {"file": str(script), "sha256": sha256_of(script), "size": SIZE, **options}
    with pytest.raises(UserError, match=rf"file of torchscript in evaluate\.extractors .*{sentence}"):
        TorchScript(**whole).load(ON_CPU)


@pytest.mark.parametrize("content", [b"", b"no program", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_torchscript_is_told(tmp_path, content):
    (tmp_path / "other.pt").write_bytes(content)
    with pytest.raises(UserError, match="which is not TorchScript"):
        chosen(tmp_path / "other.pt").load(ON_CPU)


@pytest.mark.parametrize(
    ("extractors", "sentence"),
    [
        ([{"kind": "torchscript", "file": "a", "sha256": "0" * 64, "name": "My-Net"}], "name is 'My-Net'"),
        ([{"kind": "torchscript", "file": "a", "sha256": "abc"}], "is not a sha256"),
        ([{"kind": "imagenet"}, {"kind": "imagenet"}], "imagenet_frechet, .* more than once"),
    ],
)
def test_wrong_options_are_refused(extractors, sentence):
    with pytest.raises(ValueError, match=sentence):
        EvaluateSettings.model_validate({"extractors": extractors})


def test_imagenet_has_its_own_name_and_knows_pictures():
    """Two halves of one picture look more alike to it than two pictures."""
    from skimage import data

    network = ImageNet().load(ON_CPU)
    assert isinstance(network, Resized)
    assert network.features == 1280
    halves = [half for name in ("chelsea", "coffee") for half in np.split(getattr(data, name)()[:, :300], 2, axis=1)]
    found = extract(network, np.stack([half[:300] for half in halves]))
    distances = np.linalg.norm(found[:, None] - found, axis=2)
    assert max(distances[0, 1], distances[2, 3]) < distances[:2, 2:].min()
    settings = EvaluateSettings.model_validate({"extractors": [{"kind": "imagenet"}]})
    assert "imagenet_frechet" in settings.names
    assert not any("fid" in name for name in settings.names)


def test_without_the_extra_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match=r"needs efficientnet_lite_pytorch: say `pip install .*\[imagenet\]"):
        ImageNet().load(ON_CPU)


def test_features_that_were_not_made_lately_may_go():
    folder = Path(".cache/features")
    folder.mkdir(parents=True)
    for name, age in (("old", 100.0), ("new", 0.0)):
        file = folder / f"{name}.safetensors"
        file.write_bytes(b"features")
        os.utime(file, (time.time() - age, time.time() - age))
    assert [each.path.stem for each in clean._features(time.time() - 50)] == ["old"]
    assert [each.path.stem for each in clean._features(time.time() + 50)] == ["new", "old"]
