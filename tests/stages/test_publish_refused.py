"""What `publish` refuses, and what it says."""

import pytest

from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.lineage.samples import SamplesOrigin
from diffusion_core.stages import publish
from tests.registry.projects import (
    published_versions,
    write_model,
    write_trained_project,
)
from tests.registry.servers import dying_server


@pytest.fixture
def environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_trained_project(tmp_path)


def run_stage(environment):
    publish.run(environment)


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("models/model.safetensors", "train"),
        ("models/model.json", "train"),
        ("models/run_info.json", "train"),
        ("metrics/origin.json", "evaluate"),
        ("samples/origin.json", "sample"),
    ],
)
def test_a_missing_input_is_told_with_its_stage(environment, tmp_path, file, stage):
    (tmp_path / file).unlink()
    with pytest.raises(UserError, match=rf"{file} is missing.*dvc repro {stage}"):
        run_stage(environment)
    assert published_versions(environment) == []


@pytest.mark.parametrize("file", ["metrics/origin.json", "models/run_info.json"])
@pytest.mark.parametrize("content", ["", "[]", '{"frechet": "low"}'])
def test_a_damaged_input_is_told(environment, tmp_path, file, content):
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=rf"{file} is damaged"):
        run_stage(environment)
    assert published_versions(environment) == []


def test_figures_of_another_model_are_refused(environment, tmp_path):
    write_model(tmp_path / "models", seed=1)
    with pytest.raises(UserError, match=r"metrics/evaluate.json was measured of another model.*`dvc repro evaluate`"):
        run_stage(environment)
    assert published_versions(environment) == []


def test_figures_of_other_samples_are_refused(environment, tmp_path):
    origin = SamplesOrigin.read(tmp_path / "samples/origin.json", "sample")
    origin.model_copy(update={"sampling_key": "another"}).write(tmp_path / "samples/origin.json")
    with pytest.raises(UserError, match=r"metrics/evaluate.json was measured of other samples.*`dvc repro evaluate`"):
        run_stage(environment)
    assert published_versions(environment) == []


def test_an_unreachable_server_is_told(environment):
    with pytest.raises(UserError, match="DIFFUSION_TRACKING_URI"):
        run_stage(Environment(tracking_uri="http://127.0.0.1:1"))
    assert published_versions(environment) == []


def test_a_server_that_dies_is_told(environment, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with dying_server() as address, pytest.raises(UserError, match=rf"{address} stopped answering.*run this again"):
        run_stage(Environment(tracking_uri=address))


@pytest.mark.parametrize("content", ["train: [", "- a list"])
def test_a_broken_file_of_parameters_is_named(environment, tmp_path, content):
    (tmp_path / "params.yaml").write_text(content)
    with pytest.raises(UserError, match=r"params.yaml cannot be read \(.*\): correct it"):
        run_stage(environment)
    assert published_versions(environment) == []
