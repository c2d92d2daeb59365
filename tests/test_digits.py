"""The main job on the real digits, with a smaller training budget: are the samples digits?"""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from tests.faults.commands import succeeds

STAGES = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
# What is no output: MLflow's store, and what only speeds things up.
ASIDE = {"params.yaml", "mlflow.db", ".mlflow.db.lock", "mlartifacts", ".checkpoints", ".cache"}


def outs(stage):
    """The outputs of a stage by dvc.yaml."""
    entries = [entry for key in ("outs", "metrics", "plots") for entry in STAGES[stage].get(key, [])]
    return {Path(next(iter(entry)) if isinstance(entry, dict) else entry) for entry in entries}


def files(folder):
    """Every file of the project with its time of change."""
    found = [file for file in folder.rglob("*") if file.is_file()]
    names = {file.relative_to(folder): file.stat().st_mtime_ns for file in found}
    return {name: changed for name, changed in names.items() if name.parts[0] not in ASIDE}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The job's folder, and by stage the files that it wrote."""
    folder = tmp_path_factory.mktemp("job")
    content = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    content["train"]["images"] = 16_000
    content["sample"]["count"] = 500
    (folder / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    written = {}
    for stage in STAGES:
        before = files(folder)
        succeeds(folder, stage, DIFFUSION_DEVICE="auto", DIFFUSION_PRECISION="auto")
        written[stage] = {name for name, changed in files(folder).items() if before.get(name) != changed}
    return folder, written


@pytest.fixture
def job(project):
    return project[0]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_writes_what_the_graph_says_and_nothing_else(project, stage):
    written = project[1][stage]
    assert {out for out in outs(stage) if any(name.is_relative_to(out) for name in written)} == outs(stage)
    assert {name for name in written if not any(name.is_relative_to(out) for out in outs(stage))} == set()


def test_a_classifier_of_real_digits_takes_the_samples_for_digits(job):
    pixels, labels = load_digits(return_X_y=True)
    fit, held_out, fit_labels, _ = train_test_split(pixels, labels, random_state=0, stratify=labels)
    classifier = LogisticRegression(C=0.01, max_iter=2000).fit(fit, fit_labels)
    samples = np.load(job / "samples" / "samples.npy").reshape(500, -1) * (16 / 255)
    wanted = np.load(job / "samples" / "labels.npy")

    def confidence(images):
        return float(classifier.predict_proba(images).max(axis=1).mean())

    real, generated = confidence(held_out), confidence(samples)
    noise = confidence(np.random.default_rng(0).uniform(0, 16, (500, 64)))
    assert generated > real - 0.05
    assert noise < real - 0.05
    assert float((classifier.predict(samples) == wanted).mean()) > 0.9
    counts = np.bincount(classifier.predict(samples), minlength=10)
    assert counts.min() >= 35
    assert counts.max() <= 65


def test_the_frechet_distance_is_near_its_floor(job):
    figures = json.loads((job / "metrics" / "evaluate.json").read_text(encoding="utf-8"))
    assert figures["frechet"] <= 10 * figures["frechet_floor"]
    assert figures["memorisation"] < 0.25
