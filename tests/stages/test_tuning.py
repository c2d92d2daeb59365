"""Trainings that begin from a model, that go on with a larger budget, and that only report otherwise."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

from diffusion_core.errors import UserError
from diffusion_core.lineage.checkpoints import checkpoints
from diffusion_core.lineage.model_files import model_digest
from diffusion_core.lineage.saved_model import load_model, save_model
from diffusion_core.process.schedules import Cosine
from diffusion_core.stages import train
from diffusion_core.stages.paths import LOSS, MODELS, VALIDATION
from diffusion_core.training.checkpoint import load_newest
from tests.faults.commands import is_killed, succeeds
from tests.faults.test_end_of_training import change, equal, runs, weights

SETTINGS = {"images": 256, "validate_every_images": 128}


@pytest.fixture
def trained(project, environment):
    """Return a function that trains here with changes of the settings, and returns the weights."""

    def trained(**changes):
        settings = project.train.model_copy(update=SETTINGS | changes)
        train.run(settings, environment.model_copy(update={"threads": 1}))
        return load_file(MODELS / "model.safetensors")

    return trained


def state():
    """The tensors of the newest checkpoint, and the rows of both plots."""
    (folder,) = Path(".checkpoints").iterdir()
    tensors = load_newest(folder).tensors
    flat = {f"{part}/{name}": value for part, named in tensors.items() for name, value in named.items()}
    return flat, LOSS.read_text(encoding="utf-8"), VALIDATION.read_text(encoding="utf-8")


def test_a_longer_budget_continues_and_a_shorter_one_leaves_what_is_further(trained, capsys):
    """To the last bit as if it had had that budget from the beginning; each budget has a run of its own in MLflow."""
    trained()
    capsys.readouterr()
    longer = trained(images=512)
    assert "resumes after 256 images" in capsys.readouterr().out
    continued = state()
    budgets = {run.data.params["train.images"]: run for run in runs(Path.cwd())}
    assert {run.info.status for run in budgets.values()} == {"FINISHED"}
    client = MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")
    points = client.get_metric_history(budgets["512"].info.run_id, "train/loss")
    assert sorted(point.step for point in points) == [*range(64, 513, 64)]
    assert len(client.get_metric_history(budgets["256"].info.run_id, "train/loss")) == 4

    (folder,) = Path(".checkpoints").iterdir()
    further = checkpoints(folder)[0]
    shutil.rmtree(checkpoints(folder)[-1])
    shorter = trained(images=128)
    assert "begins at 0. The checkpoint of step 16 in" in capsys.readouterr().out
    assert checkpoints(folder)[0] == further
    assert not equal(shorter, longer)
    assert trained(images=512).keys() == longer.keys()
    assert "resumes after 512 images" in capsys.readouterr().out

    # The control: with nothing to continue, it begins at 0.
    shutil.rmtree(folder)
    straight = trained(images=512)
    assert "resumes" not in capsys.readouterr().out
    assert equal(straight, longer)
    tensors, loss, validation = state()
    assert equal(tensors, continued[0])
    assert (loss, validation) == continued[1:]


def test_what_is_only_reported_changes_no_training(trained, stops_after, capsys):
    stops_after(4)
    with pytest.raises(SystemExit):
        trained()
    stops_after(10**6)
    again = trained(report_every_images=32, preview_every_images=128, max_skipped_share=0.5)
    assert "resumes after 160 images" in capsys.readouterr().out
    # The control: a learning rate is not only reported.
    assert not equal(trained(learning_rate=0.002), again)
    assert "train: begins at 0" not in capsys.readouterr().out


@pytest.fixture
def parent(trained):
    """A model in a folder, whose training is over."""
    trained()
    shutil.copytree(MODELS, "parent")
    shutil.rmtree(".checkpoints")
    return Path("parent")


def shown(run):
    """Key and step of the images of a run."""
    files = MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db").list_artifacts(run.info.run_id, "images")
    parts = [Path(file.path).name.split("+") for file in files]
    return {(part[0], int(part[2])) for part in parts}


def test_a_training_that_the_store_has_refused_shows_its_images_when_it_may(trained, environment):
    client = MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")
    refused = client.create_experiment(environment.experiment, artifact_location="file:///elsewhere/mlartifacts")
    with pytest.raises(UserError, match="keeps its artifacts in"):
        trained(images=32)
    client.rename_experiment(refused, "refused")
    trained(images=32)
    (run,) = runs(Path.cwd())
    assert ("samples~data", 0) in shown(run)


def test_a_training_from_a_model_that_is_killed_resumes_and_never_from_others(parent, trained, capsys):
    tuned = trained(parent="parent", seed=3)
    assert "train: begins from the weights of parent" in capsys.readouterr().out
    description = json.loads((MODELS / "model.json").read_text(encoding="utf-8"))
    assert description["parent"] == {"name": "parent", "kind": "folder", "digest": model_digest(parent)}
    # The first row is the parent's own loss, as it was at its end.
    rows = VALIDATION.read_text(encoding="utf-8").splitlines()
    assert rows[1].startswith("0,")
    (run,) = [run for run in runs(Path.cwd()) if run.data.tags.get("parent") == "parent"]
    assert run.data.tags["parent_digest"] == model_digest(parent)
    # The parent's own samples are shown, beside the training images.
    assert {("samples~data", 0), ("samples~training", 0)} <= shown(run)
    assert not equal(tuned, load_file(parent / "model.safetensors"))
    shutil.rmtree(".checkpoints")

    change(Path(), **SETTINGS, **{"from": "parent"}, seed=3)
    variables = {"DIFFUSION_KEEP_EVERY_IMAGES": "64", "DIFFUSION_THREADS": "1"}
    is_killed(Path(), "train", die_at="diffusion_core.training.trainer:Trainer._train_step:6", **variables)
    assert "resumes after 128 images" in succeeds(Path(), "train", **variables).stdout
    assert equal(weights(Path()), tuned)
    assert VALIDATION.read_text(encoding="utf-8").splitlines() == rows

    # Other weights under the same name are another training.
    (folder,) = Path(".checkpoints").iterdir()
    (folder / "finished").unlink()
    model = load_model(MODELS)
    content = json.loads((parent / "model.json").read_text(encoding="utf-8"))
    save_model(parent, model.diffusion, content["network"], content["process"], content["dataset"])
    trained(parent="parent", seed=3, images=32)
    assert "is of another training: the weights that it begins from are others" in capsys.readouterr().out


def test_a_model_that_does_not_fit_is_refused_with_the_keys(parent, trained, project, tmp_path_factory):
    network, process = project.train.network, project.train.process
    for changes, words in (
        ({"network": network.model_copy(update={"dim": 12})}, "train.network.dim is 12 here and 8 there: change"),
        (
            {"network": network.model_copy(update={"class_conditional": False})},
            "uses, is None here and 10 there: change",
        ),
        ({"process": process.model_copy(update={"objective": "pred_x0"})}, "train.process.objective is pred_x0 here"),
        ({"process": process.model_copy(update={"timesteps": 500})}, "process.timesteps is 500 here and 1000 there"),
        (
            {"process": process.model_copy(update={"beta_schedule": Cosine()})},
            "the noise of train.process.beta_schedule and zero_terminal_snr differs: at the middle timestep alpha_bar",
        ),
        ({"parent": "models"}, "train.from is models, which this training replaces: copy it, or name a version"),
        ({"parent": "data"}, "data has no model.json: name a folder that"),
    ):
        with pytest.raises(UserError, match=words):
            trained(**{"parent": "parent"} | changes)
    values = load_file(parent / "model.safetensors")
    values["final_conv.bias"].fill_(torch.nan)
    save_file(values, parent / "model.safetensors")
    content = json.loads((parent / "model.json").read_text(encoding="utf-8"))
    del content["weights_sha256"]
    (parent / "model.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="final_conv.bias has values that are not finite"):
        trained(parent="parent")
    # The control: what changes no meaning of the weights may differ, and a folder elsewhere is called as it likes.
    other = tmp_path_factory.mktemp("other") / "models"
    shutil.copytree(MODELS, other)
    free = {"network": network.model_copy(update={"dropout": 0.0}), "images": 32}
    assert trained(parent=str(other), **free).keys() == values.keys()
