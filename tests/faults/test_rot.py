"""A byte that flips in a file is noticed where the file is read, and the remedy in the message helps."""

import json
import shutil

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from diffusion_core.data.dataset import ImageDataset
from diffusion_core.errors import UserError
from diffusion_core.lineage import saved_model
from diffusion_core.lineage.saved_model import load_model
from diffusion_core.registry.connection import connect
from diffusion_core.registry.experiments import experiment_id
from diffusion_core.registry.publication import register
from diffusion_core.registry.versions import downloaded, load_version
from tests.faults.commands import run, succeeds
from tests.registry.projects import new_environment, write_model


def flip(file, position=-1):
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def test_a_flipped_byte_of_the_weights_is_noticed(tmp_path):
    write_model(tmp_path)
    load_model(tmp_path)
    flip(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model.safetensors is not the file that model.json describes.*dvc repro -f"):
        load_model(tmp_path)


def test_without_its_hash_the_byte_would_be_sampled_from(tmp_path, monkeypatch):
    """The control."""
    write_model(tmp_path)
    flip(tmp_path / "model.safetensors")
    described = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    monkeypatch.setattr(saved_model, "sha256_of", lambda _: described["weights_sha256"])
    load_model(tmp_path)


def test_a_flipped_pixel_of_a_shard_is_noticed_before_a_training_and_mended_by_the_remedy(digits, tmp_path):
    shutil.copytree(digits, tmp_path, dirs_exist_ok=True)
    ImageDataset.open(tmp_path / "data/prepared")
    flip(tmp_path / "data/prepared/images-00000.npy")
    done = run(tmp_path, "train")
    assert done.returncode == 2
    assert "images-00000.npy is damaged (its sha256 differs from dataset.json): make it again" in done.stderr
    assert not (tmp_path / ".checkpoints").exists()
    succeeds(tmp_path, "prepare")
    ImageDataset.open(tmp_path / "data/prepared")


@pytest.fixture
def champion(tmp_path, monkeypatch):
    """A registered champion; returns client, environment and the folder of its files."""
    monkeypatch.chdir(tmp_path)
    environment = new_environment(tmp_path)
    client = connect(environment)
    write_model(tmp_path / "models")
    training = client.create_run(experiment_id(client, environment))
    version = register(client, training, environment.registered_model, tmp_path / "models", {})
    client.set_registered_model_alias(version.name, "champion", version.version)
    (weights,) = (tmp_path / "mlartifacts").rglob("model.safetensors")
    return client, environment, weights.parent


def test_a_champion_whose_files_changed_is_refused(champion):
    client, environment, folder = champion
    load_version(client, environment.registered_model)
    flip(folder / "model.json", 20)
    with pytest.raises(UserError, match="files of version 1 of diffusion are missing, or not those that"):
        load_version(client, environment.registered_model)
    version = client.get_model_version_by_alias(environment.registered_model, "champion")
    with pytest.raises(UserError, match="not those that were registered"), downloaded(version):
        pass


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "both"])
def test_a_champion_without_its_files_is_refused(champion, name):
    client, environment, folder = champion
    if name == "both":
        shutil.rmtree(folder)
    else:
        (folder / name).unlink()
    with pytest.raises(UserError, match="files of version 1 of diffusion are missing, or not those that"):
        load_version(client, environment.registered_model)


def test_loading_the_champion_runs_no_code_of_the_store(champion, tmp_path, monkeypatch):
    """MLflow's own way imports the module that MLmodel names; it is the control."""
    client, environment, _ = champion
    (description,) = (tmp_path / "mlartifacts").rglob("MLmodel")
    marker = tmp_path / "touched"
    (tmp_path / "hostile_loader.py").write_text(
        f"open({str(marker)!r}, 'w').close()\ndef _load_pyfunc(path): return None\n"
    )
    text = description.read_text(encoding="utf-8")
    assert "loader_module: mlflow.pyfunc.loaders.code_model" in text
    description.write_text(
        text.replace("loader_module: mlflow.pyfunc.loaders.code_model", "loader_module: hostile_loader")
    )
    monkeypatch.syspath_prepend(tmp_path)
    load_version(client, environment.registered_model)
    assert not marker.exists()
    with pytest.raises(MlflowException):
        mlflow.pyfunc.load_model(f"models:/{environment.registered_model}@champion")
    assert marker.exists()


@pytest.mark.parametrize("version", ["7", "nightly"])
def test_a_version_that_is_not_there_is_one_sentence(champion, version):
    client, environment, _ = champion
    with pytest.raises(UserError, match=rf"diffusion has no (version|alias) {version} in this store"):
        load_version(client, environment.registered_model, version)
