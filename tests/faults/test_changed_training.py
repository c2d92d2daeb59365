"""A checkpoint resumes only the training that wrote it: data, parameters, code and PyTorch are parts of its name."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from diffusion_core.lineage.identity import CODE, Identity
from tests.faults.commands import run

STAGES = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]


def test_the_code_of_the_identity_is_what_dvc_watches():
    watched = {
        each.removeprefix("diffusion_core/") for each in STAGES["train"]["deps"] if each.startswith("diffusion_")
    }
    assert set(CODE) == watched


def identity(**changes):
    known = {"dataset": "d", "params": {"seed": "0"}, "code": {"a.py": "1", "b.py": "2"}, "torch": "2.13.0"}
    return Identity(**(known | changes))


def test_each_part_changes_the_digest_and_is_named():
    ours = identity()
    for changes, words in (
        ({"dataset": "e"}, "the images in data/prepared are others"),
        ({"params": {"seed": "1"}}, "train.seed was 1 and is 0"),
        ({"params": {}}, "train.seed was not set and is 0"),
        ({"code": {"a.py": "1", "b.py": "3"}}, "the code has changed (b.py)"),
        ({"torch": "2.12.0"}, "PyTorch was 2.12.0 and is 2.13.0"),
    ):
        other = identity(**changes)
        assert other.digest != ours.digest
        assert ours.differences(other) == [words]
    assert ours.differences(identity()) == []


@pytest.fixture
def copy(tmp_path):
    """The package in a folder of its own, whose code can be changed."""
    shutil.copytree("diffusion_core", tmp_path / "diffusion_core", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def train(folder, copy, **options):
    """Train by the copy's code."""
    program = f"import sys; sys.path.insert(0, {str(copy)!r}); from diffusion_core.__main__ import main; main()"
    variables = {"DIFFUSION_DEVICE": "cpu", "DIFFUSION_PRECISION": "float32", "PYTHONPATH": str(copy)}
    return subprocess.run(
        [sys.executable, "-c", program, "train"],
        cwd=folder,
        env={**os.environ, **variables, **options},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_changed_code_begins_again_and_says_why(digits, tmp_path_factory, copy):
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(digits, folder, dirs_exist_ok=True)
    trainer = copy / "diffusion_core/training/trainer.py"
    original = trainer.read_text(encoding="utf-8")
    stops = "        self.step += 1\n        if self.step == 4:\n            import os, signal\n"
    stops += "            os.kill(os.getpid(), signal.SIGTERM)\n"
    assert "        self.step += 1\n" in original
    trainer.write_text(original.replace("        self.step += 1\n", stops), encoding="utf-8")
    assert train(folder, copy).returncode == 143
    losses = copy / "diffusion_core/process/losses.py"
    losses.write_text(losses.read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")
    trainer.write_text(original, encoding="utf-8")
    done = train(folder, copy)
    assert done.returncode == 0, done.stderr
    assert "resumes" not in done.stdout
    assert "The checkpoint of step 4 in .checkpoints/" in done.stdout
    assert "the code has changed (process/losses.py, training/trainer.py)" in done.stdout


def test_a_changed_comment_elsewhere_resumes(digits, tmp_path_factory, copy):
    """The control: code that has no part in the weights."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(digits, folder, dirs_exist_ok=True)
    assert train(folder, copy).returncode == 0
    file = copy / "diffusion_core/stages/publish.py"
    file.write_text(file.read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")
    assert "resumes after 320 images" in train(folder, copy).stdout


def test_other_params_begin_again_and_say_why(digits, tmp_path):
    shutil.copytree(digits, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "params.yaml"
    done = run(tmp_path, "train", die_at="diffusion_core.stages.train:mark_finished:1")
    assert done.returncode < 0
    file.write_text(file.read_text(encoding="utf-8").replace("learning_rate: 0.001", "learning_rate: 0.002"))
    done = run(tmp_path, "train")
    assert done.returncode == 0
    assert "is of another training: train.learning_rate was 0.001 and is 0.002" in done.stdout
