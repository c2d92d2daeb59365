"""`data/reference` is whole and made of `data/prepared`, or as it was."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import ReferenceSettings
from diffusion_core.data.dataset import ImageDataset
from diffusion_core.errors import UserError
from diffusion_core.metrics.reference import Reference
from diffusion_core.stages import reference
from tests.metrics.prepared import prepare_digits

PREPARED, MADE = Path("data/prepared"), Path("data/reference")
BRIEFLY = ReferenceSettings(images=1000)
ON_CPU = Environment(device="cpu")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    prepare_digits(folder)
    return folder / PREPARED


@pytest.fixture(autouse=True)
def _project(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path / PREPARED)
    monkeypatch.chdir(tmp_path)


def test_the_reference_is_of_the_dataset_and_made_again_the_same(capsys):
    reference.run(BRIEFLY, ON_CPU)
    assert "validation accuracy" in capsys.readouterr().out
    assert {file.name for file in MADE.iterdir()} == {
        "extractor.safetensors",
        "features.safetensors",
        "reference.json",
    }
    contents = {file.name: file.read_bytes() for file in MADE.iterdir()}
    made, dataset = Reference.load(MADE), ImageDataset.open(PREPARED, "train")
    assert made.dataset_digest == dataset.info.digest
    np.testing.assert_allclose(made.extract(dataset.images()), made.train_features, atol=1e-5)

    reference.run(BRIEFLY, ON_CPU)
    assert {file.name: file.read_bytes() for file in MADE.iterdir()} == contents


def test_a_missing_dataset_is_told_with_the_stage_that_makes_it():
    shutil.rmtree(PREPARED)
    with pytest.raises(UserError, match=r"data/prepared is missing: .* `dvc repro prepare`"):
        reference.run(BRIEFLY, ON_CPU)


def test_a_failure_leaves_what_was_there():
    reference.run(BRIEFLY, ON_CPU)
    contents = {file: file.read_bytes() for file in MADE.iterdir()}
    with pytest.raises(UserError, match="not finite"):
        reference.run(ReferenceSettings(images=1000, learning_rate=1e30), ON_CPU)
    assert {file: file.read_bytes() for file in MADE.iterdir()} == contents
    assert {folder.name for folder in MADE.parent.iterdir()} == {"prepared", "reference"}
