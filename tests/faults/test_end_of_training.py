"""The end of a training is as safe as its middle: DVC records a model only after the stage has ended."""

import json
import os
import shutil
import signal
import subprocess

import pytest
import torch
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file

from diffusion_core.lineage.checkpoints import checkpoints, is_finished
from tests.faults.commands import command, is_killed, run, succeeds, wait_for

OUTPUTS = (
    "models/model.safetensors",
    "models/model.json",
    "models/run_info.json",
    "plots/loss.csv",
    "plots/validation.csv",
)


def weights(folder):
    return load_file(folder / "models/model.safetensors")


def runs(folder):
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    return [
        each for experiment in client.search_experiments() for each in client.search_runs([experiment.experiment_id])
    ]


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def change(folder, **values):
    file = folder / "params.yaml"
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    content["train"] |= values
    file.write_text(yaml.safe_dump(content), encoding="utf-8")


@pytest.fixture(scope="module")
def undisturbed(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(digits, folder, dirs_exist_ok=True)
    succeeds(folder, "train")
    return folder


@pytest.fixture
def folder(digits, tmp_path):
    shutil.copytree(digits, tmp_path, dirs_exist_ok=True)
    return tmp_path


# The last moments of the stage: before and between the renames of its outputs, and after them.
LAST_MOMENTS = {
    "before the outputs are moved": "diffusion_core.files:_move:1",
    "between two outputs": "diffusion_core.files:_move:3",
    "before the end is noted": "diffusion_core.stages.train:mark_finished:1",
    "while the end is noted": "diffusion_core.lineage.checkpoints:write_whole:1",
}


@pytest.mark.parametrize("moment", LAST_MOMENTS)
def test_a_training_killed_at_its_end_is_made_again_from_its_last_checkpoint(moment, folder, undisturbed):
    is_killed(folder, "train", die_at=LAST_MOMENTS[moment])
    # As DVC does with outputs that it has not recorded.
    for output in OUTPUTS:
        (folder / output).unlink(missing_ok=True)
    again = succeeds(folder, "train")
    assert "resumes after 320 images" in again.stdout
    assert equal(weights(folder), weights(undisturbed))
    for plot in ("plots/loss.csv", "plots/validation.csv"):
        assert (folder / plot).read_text() == (undisturbed / plot).read_text()
    (tracked,) = runs(folder)
    assert tracked.info.status == "FINISHED"
    assert json.loads((folder / "models/run_info.json").read_text())["run_key"] == tracked.data.tags["run_key"]


def test_a_finished_training_whose_model_dvc_deletes_is_made_again_at_once(folder, undisturbed):
    succeeds(folder, "train")
    for output in OUTPUTS:
        (folder / output).unlink()
    assert "resumes after 320 images" in succeeds(folder, "train").stdout
    assert equal(weights(folder), weights(undisturbed))
    assert len(runs(folder)) == 1


@pytest.mark.parametrize("rename", [1, 2, 3])
def test_what_a_kill_before_a_rename_left_is_removed_by_the_next_training(rename, folder):
    is_killed(folder, "train", die_at=f"pathlib:Path.replace:{rename}")
    assert [*folder.rglob(".*.tmp-*")]
    succeeds(folder, "train")
    assert [*folder.rglob(".*.tmp-*")] == []


def test_without_its_checkpoint_it_would_begin_again(folder):
    """The control."""
    succeeds(folder, "train")
    for output in OUTPUTS:
        (folder / output).unlink()
    shutil.rmtree(folder / ".checkpoints")
    assert "resumes" not in succeeds(folder, "train").stdout
    assert len(runs(folder)) == 2


def test_the_next_training_of_something_else_removes_what_is_finished(folder):
    succeeds(folder, "train")
    (first,) = (folder / ".checkpoints").iterdir()
    change(folder, seed=1)
    succeeds(folder, "train")
    (second,) = (folder / ".checkpoints").iterdir()
    assert first != second


def test_a_finished_training_that_trains_again_is_not_removed(folder):
    """DVC makes its model again with `--force`, and that is interrupted."""
    succeeds(folder, "train")
    (first,) = (folder / ".checkpoints").iterdir()
    assert is_finished(first)
    is_killed(folder, "train", die_at="diffusion_core.stages.train:load_newest:1")
    assert not is_finished(first)
    assert checkpoints(first)


# Where a training dies that removes the folder of another one: which of its files are left, and in which folder.
REMOVALS = {
    "before it is renamed": ("pathlib:Path.rename:1", "all", ""),
    "after it is renamed": ("shutil:rmtree:2", "all", ".trash"),
    "while it is removed": ("os:unlink:4", "some", ".trash"),
}


@pytest.mark.parametrize("moment", REMOVALS)
def test_a_kill_while_checkpoints_are_removed_blocks_nothing(folder, moment):
    succeeds(folder, "train")
    (first,) = (folder / ".checkpoints").iterdir()
    count, params = len([*first.rglob("*")]), (folder / "params.yaml").read_text(encoding="utf-8")
    change(folder, seed=1)
    place, files, where = REMOVALS[moment]
    is_killed(folder, "train", die_at=place)
    (left,) = (each for each in first.parent.iterdir() if first.name in each.name)
    assert (left.suffix.partition("-")[0], len([*left.rglob("*")]) < count) == (where, files == "some")
    # Neither the one that was removed is blocked, nor any other.
    (folder / "params.yaml").write_text(params, encoding="utf-8")
    succeeds(folder, "train")
    change(folder, seed=1)
    succeeds(folder, "train")
    (second,) = (folder / ".checkpoints").iterdir()
    assert second.name != first.name


def test_two_trainings_in_one_folder_are_refused(folder):
    change(folder, images=32 * 4000)
    environment = {**os.environ, "DIFFUSION_DEVICE": "cpu", "DIFFUSION_PRECISION": "float32"}
    first = subprocess.Popen(command("train"), cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: list((folder / ".checkpoints").glob("*/identity.json")))
        change(folder, seed=1)
        second = run(folder, "train")
        assert second.returncode == 2
        assert second.stderr.startswith("error: another training writes models in ")
        # The control: without the lock of the folder, both would.
        change(folder, images=320)
        no_lock = {"diffusion_core.stages.keeping:exclusive_lock": "__import__('contextlib').nullcontext"}
        succeeds(folder, "train", setting=no_lock)
    finally:
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 143


def test_models_may_lie_on_another_filesystem(folder, disk):
    if disk.stat().st_dev == folder.stat().st_dev:
        pytest.skip("there is no other filesystem")
    (folder / "models").symlink_to(disk)
    succeeds(folder, "train")
    assert weights(folder)
    assert sorted(each.name for each in disk.iterdir()) == ["model.json", "model.safetensors", "run_info.json"]
