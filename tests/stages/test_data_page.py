"""The training run in MLflow has the page of the images that it was trained on."""

import json
from pathlib import Path

import mlflow

from diffusion_core.registry.sending import find_run
from diffusion_core.stages import train
from diffusion_core.stages.paths import DATA_PAGE, RUN_INFO


def artifacts() -> tuple[mlflow.MlflowClient, str, list[str]]:
    client = mlflow.MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")
    run = find_run(client, json.loads(RUN_INFO.read_text(encoding="utf-8"))["run_key"])
    return client, run, [file.path for file in client.list_artifacts(run)]


def test_the_run_has_the_page(project, environment, tmp_path):
    train.run(project.train, environment)
    client, run, files = artifacts()
    assert DATA_PAGE.name in files
    assert Path(client.download_artifacts(run, DATA_PAGE.name)).read_bytes() == DATA_PAGE.read_bytes()


def test_a_training_without_the_page_trains(project, environment):
    DATA_PAGE.unlink()
    train.run(project.train, environment)
    assert DATA_PAGE.name not in artifacts()[2]
