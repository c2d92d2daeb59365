"""A project of its own for each test: params.yaml with a tiny network, and the digits prepared."""

import os
import shutil
import signal
from itertools import islice
from pathlib import Path

import pytest
import yaml

from diffusion_core.config.environment import Environment
from diffusion_core.config.params import load_settings
from diffusion_core.stages import ingest, prepare
from diffusion_core.training.trainer import Trainer
from tests.registry.projects import empty_store

TINY = {
    "images": 320,
    "batch_size": 32,
    "warmup_images": 64,
    "validate_every_images": 128,
    "report_every_images": 64,
    "preview_every_images": 10**6,
}


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A folder with params.yaml, data/prepared and an empty tracking store."""
    folder = tmp_path_factory.mktemp("digits")
    content = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    content["train"] |= TINY
    content["train"]["network"] |= {"dim": 8, "dropout": 0.1}
    content["sample"] |= {"count": 12, "sampler": {"kind": "ddim", "steps": 4}}
    (folder / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    (folder / "mlflow.db").write_bytes(empty_store())
    settings = load_settings(folder / "params.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ingest.run(settings.ingest, Environment())
        prepare.run(settings.prepare)
    return folder


@pytest.fixture
def project(digits, tmp_path, monkeypatch):
    """A copy of `digits` as the working directory; returns its settings."""
    shutil.copytree(digits, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return load_settings()


@pytest.fixture
def environment():
    return Environment(device="cpu", precision="float32")


@pytest.fixture
def stops_after(monkeypatch):
    """Make the process get TERM during the step after so many."""
    steps = Trainer.steps

    def arrange(count):
        def stopping(self):
            walk = steps(self)
            yield from islice(walk, count)
            os.kill(os.getpid(), signal.SIGTERM)
            yield from walk

        monkeypatch.setattr(Trainer, "steps", stopping)

    yield arrange
    monkeypatch.undo()
