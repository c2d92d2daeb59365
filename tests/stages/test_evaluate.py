"""The figures and pictures of an evaluation belong to its inputs, or are as they were."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import EvaluateSettings, ReferenceSettings
from diffusion_core.data.dataset import ImageDataset
from diffusion_core.errors import UserError
from diffusion_core.lineage.evaluation import FiguresOrigin, evaluation_key
from diffusion_core.lineage.samples import SamplesOrigin
from diffusion_core.metrics.reference import Reference
from diffusion_core.stages import evaluate, reference
from tests.metrics.prepared import prepare_digits

PREPARED, REFERENCE, SAMPLES = Path("data/prepared"), Path("data/reference"), Path("samples/samples.npy")
METRICS = Path("metrics/evaluate.json")
PLOTS = [Path("plots") / name for name in ("distances.png", "real_and_generated.png", "nearest.png")]
ON_CPU = Environment(device="cpu")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Real digits, their reference, and as samples the digits that nobody trained on."""
    project = tmp_path_factory.mktemp("digits")
    prepare_digits(project)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        reference.run(ReferenceSettings(images=5000), ON_CPU)
        SAMPLES.parent.mkdir()
        np.save(SAMPLES, ImageDataset.open(PREPARED, "validation").images())
        SamplesOrigin(model_digest="m", sampling_key="s").write(SAMPLES.with_name("origin.json"))
    return project


@pytest.fixture(autouse=True)
def _project(inputs, tmp_path, monkeypatch):
    for folder in (PREPARED, REFERENCE, SAMPLES.parent):
        shutil.copytree(inputs / folder, tmp_path / folder)
    monkeypatch.chdir(tmp_path)


def run(**settings):
    evaluate.run(EvaluateSettings(**settings), ON_CPU)
    return json.loads(METRICS.read_text())


def nothing_is_written():
    return not METRICS.parent.exists() and not Path("plots").exists()


def test_figures_and_pictures_are_written(capsys):
    figures = run()
    assert figures["sample_count"] == len(np.load(SAMPLES))
    assert 0.0 < figures["frechet_ratio"] < 3.0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("evaluate: frechet_ratio ")]
    assert f"{figures['frechet_ratio']:.4g} +- " in line
    assert "(real images 1, noise " in line
    assert figures["frechet_low"] < figures["frechet"] < figures["frechet_high"]
    for plot in PLOTS:
        with Image.open(plot) as image:
            assert image.width > 600
            assert np.asarray(image).std() > 10
    assert run() == figures


def test_other_files_beside_the_outputs_stay():
    Path("plots").mkdir()
    Path("plots/loss.csv").write_text("images,loss\n")
    run()
    assert Path("plots/loss.csv").read_text() == "images,loss\n"
    assert {file.name for file in Path("plots").iterdir()} == {"loss.csv", *(plot.name for plot in PLOTS)}
    assert {file.name for file in METRICS.parent.iterdir()} == {METRICS.name, "origin.json"}


def test_the_figures_say_which_model_they_are_of_and_how_they_were_measured():
    run(seed=1)
    origin = FiguresOrigin.read(METRICS.with_name("origin.json"), "evaluate")
    assert origin.evaluation.key == evaluation_key(Reference.load(REFERENCE).digest, "s", EvaluateSettings(seed=1))
    assert (origin.model_digest, origin.sampling_key) == ("m", "s")
    assert origin.evaluation.figures == json.loads(METRICS.read_text())


@pytest.mark.parametrize("content", [None, "", '{"model_digest": "m"}'])
def test_samples_of_unknown_origin_are_refused(content):
    origin = SAMPLES.with_name("origin.json")
    if content is None:
        origin.unlink()
    else:
        origin.write_text(content)
    with pytest.raises(UserError, match=r"samples/origin.json is (missing|damaged).*dvc repro.* sample"):
        run()
    assert nothing_is_written()


def test_worse_samples_have_worse_figures():
    real = run()
    images = np.load(SAMPLES)
    blurred = ((images.astype(int) + np.roll(images, 1, axis=1) + np.roll(images, 1, axis=2)) // 3).astype(np.uint8)
    np.save(SAMPLES, blurred)
    assert run()["frechet_ratio"] > 3 * real["frechet_ratio"]


def test_an_untrained_model_s_samples_of_one_colour_are_measured():
    np.save(SAMPLES, np.full_like(np.load(SAMPLES), 128))
    figures = run()
    assert figures["recall"] == 0.0
    assert figures["frechet_ratio"] > 20


@pytest.mark.parametrize(
    ("missing", "stage"), [(PREPARED, "prepare"), (REFERENCE, "reference"), (SAMPLES.parent, "sample")]
)
def test_a_missing_input_is_told_with_the_stage_that_makes_it(missing, stage):
    shutil.rmtree(missing)
    with pytest.raises(UserError, match=rf"{missing}.* is missing: .* `dvc repro {stage}`"):
        run()
    assert nothing_is_written()


def test_samples_of_another_shape_are_refused():
    np.save(SAMPLES, np.zeros((10, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"\(10, 8, 8, 3\) .* \(8, 8, 1\): .*`dvc repro sample`"):
        run()
    np.save(SAMPLES, np.zeros((10, 8, 8, 1), np.float32))
    with pytest.raises(UserError, match="holds float32"):
        run()
    assert nothing_is_written()


@pytest.mark.parametrize("content", [b"", b"no array", b"\x80\x04N."])
def test_a_damaged_samples_file_is_told(content):
    SAMPLES.write_bytes(content)
    with pytest.raises(UserError, match=r"samples.npy is damaged"):
        run()
    assert nothing_is_written()


def test_a_reference_of_another_dataset_is_refused():
    file = PREPARED / "dataset.json"
    info = json.loads(file.read_text())
    file.write_text(json.dumps(info | {"digest": "0" * 64}))
    with pytest.raises(UserError, match=r"data/reference was made of another dataset .* `dvc repro reference`"):
        run()
    assert nothing_is_written()


def test_a_single_sample_is_refused_by_the_key_to_change():
    np.save(SAMPLES, np.load(SAMPLES)[:1])
    with pytest.raises(UserError, match=r"raise sample.count"):
        run()
    assert nothing_is_written()


def test_few_samples_are_enough_for_pictures():
    np.save(SAMPLES, np.load(SAMPLES)[:5])
    assert run()["sample_count"] == 5


def test_a_failure_keeps_the_figures_of_before():
    before = run()
    np.save(SAMPLES, np.load(SAMPLES)[:1])
    with pytest.raises(UserError):
        run()
    assert json.loads(METRICS.read_text()) == before
