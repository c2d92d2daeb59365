"""A whole job on the digits, small, in a repository with the code of this checkout: trained, measured and published."""

import json
import shutil
import subprocess
from contextlib import chdir
from pathlib import Path

import yaml
from dvc.repo import Repo
from mlflow.entities import Metric

from diffusion_core.config.environment import Environment
from diffusion_core.config.params import load_settings
from diffusion_core.lineage.recorded import CHANGES, LOCK, PARAMS
from diffusion_core.registry.connection import connect
from diffusion_core.registry.experiments import experiment_id
from diffusion_core.registry.versions import find_named
from diffusion_core.stages import evaluate, ingest, prepare, promote, publish, reference, sample, train
from tests.flows.repository import CHECKOUT, commit
from tests.registry.projects import empty_store

NAME = "diffusion"
NEEDED = (
    *("diffusion_core", "dvc.yaml", "params.yaml", ".dvc", ".dvcignore", ".gitignore"),
    *("data", "models", "metrics", "plots"),
)


def new_environment(folder):
    """The environment of a job, whose store is in its folder."""
    return Environment(tracking_uri=f"sqlite:///{folder}/mlflow.db", device="cpu", precision="float32", threads=1)


def write_repository(folder):
    """Copy the code of this checkout, make its training small, and commit it."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *NEEDED]
    files = subprocess.run(listed, cwd=CHECKOUT, check=True, capture_output=True, text=True).stdout.split()
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / name, folder / name)
    content = yaml.safe_load((folder / "params.yaml").read_text())
    content["reference"] |= {"images": 256, "features": 8}
    content["train"] |= {
        "images": 320,
        "batch_size": 32,
        "warmup_images": 64,
        "validate_every_images": 128,
        "report_every_images": 64,
        "preview_every_images": 10**6,
    }
    content["train"]["network"] |= {"dim": 8}
    content["sample"] |= {"count": 60, "sampler": {"kind": "ddim", "steps": 2}}
    content["promote"] = {"limits": {"frechet": {"at_most": 1e9}}, "champion": {}}
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    (folder / "mlflow.db").write_bytes(empty_store())
    subprocess.run(["git", "init", "--quiet", "--initial-branch", "main"], cwd=folder, check=True)
    return commit(folder)


def record(*stages):
    """Let DVC keep what the stages made, as `dvc repro` does."""
    with Repo(".") as repo:
        for each in stages:
            repo.commit(each, force=True)


def bring_images():
    settings = load_settings()
    ingest.run(settings.ingest, Environment())
    prepare.run(settings.prepare)
    record("ingest", "prepare")


def train_and_publish(environment):
    """Run what comes after the images."""
    settings = load_settings()
    reference.run(settings.reference, environment)
    train.run(settings.train, environment)
    sample.run(settings.sample, environment)
    evaluate.run(settings.evaluate, environment)
    record("reference", "train", "sample", "evaluate")
    publish.run(environment)
    promote.run(settings.promote, settings.sample, settings.evaluate, environment)


def set_params(**train_params):
    content = yaml.safe_load(Path("params.yaml").read_text())
    content["train"] |= train_params
    Path("params.yaml").write_text(yaml.safe_dump(content))


def run_job(folder):
    """Make two versions: the first of a commit, the second with changes, which the checkout then loses.

    Returns:
        The commit.
    """
    environment = new_environment(folder)
    made = write_repository(folder)
    with chdir(folder):
        bring_images()
        train_and_publish(environment)
        set_params(seed=1)
        Path("diffusion_core/mine.py").write_text("CHANGED = True  # <b>https://me:canary@host/store?token=canary\n")
        train_and_publish(environment)
        set_params(seed=7)
        Path("diffusion_core/mine.py").unlink()
    return made


def store(job):
    environment = Environment(tracking_uri=f"sqlite:///{job}/mlflow.db")
    return connect(environment), environment


def file_of(client, version, name):
    run = client.get_run(find_named(client, NAME, version).run_id)
    return Path(client.download_artifacts(run.info.run_id, name)).read_text()


def twin(job, name, tags=None, files=None):
    """Register version 2 once more as a model `name`, with other tags and recorded files, or without (None)."""
    client, environment = store(job)
    original = find_named(client, NAME, "2")
    known = client.get_run(original.run_id)
    run = client.create_run(experiment_id(client, environment), tags={"threads": "1"})
    for metric in ("train/loss", "train/grad_norm", "validation/loss"):
        points = client.get_metric_history(known.info.run_id, metric)
        client.log_batch(run.info.run_id, [Metric(metric, each.value, 0, each.step) for each in points])
    texts = {each: file_of(client, "2", each) for each in (PARAMS, LOCK, CHANGES)} | (files or {})
    for file, text in texts.items():
        if text is not None:
            client.log_text(run.info.run_id, text, file)
    client.create_registered_model(name)
    merged = {tag: value for tag, value in (original.tags | (tags or {})).items() if value is not None}
    client.create_model_version(name, original.source, run.info.run_id, tags=merged)


def begun(folder, name, commit):
    """What a reproduction that was killed while it made its worktree leaves; its store takes seconds to make."""
    folder.mkdir(parents=True)
    content = {"model": name, "version": int(folder.name.rpartition("-")[2]), "commit": commit}
    (folder / "reproduction.json").write_text(json.dumps(content))
    (folder / "checkout").mkdir()
    (folder / "checkout/half.py").write_text("x")
    (folder / "mlflow.db").write_bytes(empty_store())
