"""Odd places and times: a path of characters that addresses use, and a clock that jumps between stop and resume."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy
import torch
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file

from tests.faults.forks import commands
from tests.faults.test_end_of_training import runs

CHECKOUT = Path(__file__).parents[2]
NAME = "a b?c%41d#é"
DAY = 86_400
# TERM after the fifth step.
STOPS = {
    "diffusion_core.stages.train:asked_to_stop": (
        "(lambda steps: lambda *_, **__: 143 if next(steps) == 5 else None)(__import__('itertools').count(1))"
    )
}


def test_the_whole_pipeline_runs_in_a_path_of_odd_characters_and_writes_nothing_beside_it(digits, tmp_path):
    folder = tmp_path / NAME
    folder.mkdir()
    content = yaml.safe_load((digits / "params.yaml").read_text(encoding="utf-8"))
    content["reference"] |= {"images": 1280}
    content["train"] |= {"images": 64}
    (folder / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    shutil.copy(CHECKOUT / "dvc.yaml", folder)
    # DVC watches the code.
    shutil.copytree(
        CHECKOUT / "diffusion_core", folder / "diffusion_core", ignore=shutil.ignore_patterns("__pycache__")
    )
    variables = {
        **os.environ,
        "DIFFUSION_DEVICE": "cpu",
        "DIFFUSION_PRECISION": "float32",
        "OMP_NUM_THREADS": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    python = [sys.executable, "-m"]
    for command in (
        ["git", "init", "--quiet"],
        [*python, "dvc", "init", "--quiet"],
        [*python, "dvc", "repro"],
        [*python, "diffusion_core", "publish"],
    ):
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert [each.name for each in tmp_path.iterdir()] == [NAME]
    # A link, because no address can name the file itself. This is the control: the plain one is of another file.
    assert sqlalchemy.make_url(f"sqlite:///{folder}/mlflow.db").database == f"{tmp_path}/a b"
    (tmp_path / "link").symlink_to(folder)
    client = MlflowClient(f"sqlite:///{tmp_path}/link/mlflow.db")
    (version,) = client.search_model_versions("name = 'diffusion'")
    assert client.get_run(version.run_id).info.status == "FINISHED"
    assert len([*folder.glob("mlartifacts/models/*/artifacts/MLmodel")]) == 1


@pytest.fixture(scope="module")
def clock(digits, tmp_path_factory):
    """A folder for commands, and the weights of a training with a clock that does not jump."""
    folder = tmp_path_factory.mktemp("clock")
    with commands(lambda command: ["env", f"--chdir={folder}", *command]) as clock:
        shutil.copytree(digits, folder / "undisturbed")
        clock.succeeds("train", folder="undisturbed")
        clock.folder = folder
        yield clock


@pytest.mark.parametrize("days", [-10, 400])
def test_a_training_resumes_at_another_date(clock, digits, days):
    """The clock is Python's: `time.time` of the process is other, and dates of files are the system's."""
    folder = clock.folder / f"{days}"
    shutil.copytree(digits, folder)
    assert clock.run("train", folder=folder, setting=STOPS).returncode == 143
    jump = {
        "time:time": f"lambda: original() + {days * DAY}",
        "time:time_ns": f"lambda: original() + {days * DAY * 10**9}",
    }
    done = clock.succeeds("train", folder=folder, setting=jump)
    assert "resumes after 160 images" in done.stdout
    assert "damaged" not in done.stderr
    resumed, expected = (
        load_file(clock.folder / name / "models/model.safetensors") for name in (folder.name, "undisturbed")
    )
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    (run,) = runs(folder)
    assert run.info.status == "FINISHED"
    history = MlflowClient(f"sqlite:///{folder}/mlflow.db").get_metric_history(run.info.run_id, "train/loss")
    points = sorted((point.step, point.timestamp) for point in history)
    assert [step for step, _ in points] == [64, 128, 192, 256, 320]
    # The control: the clock has jumped.
    assert round((points[-1][1] - points[0][1]) / (DAY * 1000)) == days
