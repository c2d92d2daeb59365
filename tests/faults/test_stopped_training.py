"""A training that is stopped in each of its steps, and resumed in a new process, ends as one that never stopped."""

import json
import shutil

import pytest

from diffusion_core.lineage.checkpoints import checkpoints
from tests.faults.commands import run, succeeds
from tests.faults.test_end_of_training import change, runs
from tests.faults.timed_tracking import before_steps
from tests.soak.checks import differing_files
from tests.soak.subjects import Subject

TERM = "os.kill(os.getpid(), signal.SIGTERM)"
STEPS = 6


@pytest.fixture(scope="module")
def project(digits, tmp_path_factory):
    """A project whose training has dropout, flips and self-conditioning."""
    folder = tmp_path_factory.mktemp("stopped") / "project"
    shutil.copytree(digits, folder)
    change(folder, images=32 * STEPS, horizontal_flip=True)
    return folder


@pytest.fixture(scope="module")
def never_stopped(project, tmp_path_factory):
    folder = tmp_path_factory.mktemp("never") / "project"
    shutil.copytree(project, folder)
    succeeds(folder, "train")
    return folder


@pytest.fixture
def folder(project, tmp_path):
    shutil.copytree(project, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_training_that_is_stopped_in_each_step_ends_as_one_that_never_stopped(folder, never_stopped):
    for step in range(1, STEPS + 1):
        # Each process does one step.
        assert run(folder, "train", setting=before_steps(step_1=TERM)).returncode == 143
        (training,) = (folder / ".checkpoints").iterdir()
        assert checkpoints(training)[0].name == f"step-{step:09d}"
        assert not (folder / "models/run_info.json").exists()
        (tracked,) = runs(folder)
        assert tracked.info.status == "KILLED"
    assert f"resumes after {32 * STEPS} images" in succeeds(folder, "train").stdout
    assert differing_files(folder, never_stopped, Subject.outputs) == []
    (tracked,) = runs(folder)
    assert tracked.info.status == "FINISHED"
    info = json.loads((folder / "models/run_info.json").read_text(encoding="utf-8"))
    assert info["run_key"] == tracked.data.tags["run_key"]


# What a resumed training would begin again with.
LOST = {
    "the averaged weights": "{**tensors, 'ema': tensors['model']}",
    "the optimizer": "{**tensors, 'optimizer': {n: 0 * t for n, t in tensors['optimizer'].items()}}",
}


@pytest.mark.parametrize("part", LOST)
def test_what_a_resumed_training_has_lost_is_noticed(part, folder, never_stopped):
    """The control."""
    assert run(folder, "train", setting=before_steps(step_3=TERM)).returncode == 143
    restore = f"lambda self, step, tensors: original(self, step, {LOST[part]})"
    succeeds(folder, "train", setting={"diffusion_core.training.trainer:Trainer.restore": restore})
    assert "models/model.safetensors differs from the undisturbed one" in differing_files(
        folder, never_stopped, Subject.outputs
    )
