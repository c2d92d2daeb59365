"""A whole job on the digits, small, in a repository with the code of this checkout: trained, measured and published."""

import shutil
import subprocess
from contextlib import chdir
from pathlib import Path

import yaml
from dvc.repo import Repo

from diffusion_core.config.environment import Environment
from diffusion_core.config.params import load_settings
from diffusion_core.stages import evaluate, ingest, prepare, promote, publish, reference, sample, train
from tests.flows.repository import CHECKOUT, commit
from tests.registry.projects import empty_store

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
        Path("diffusion_core/mine.py").write_text("CHANGED = True\n")
        train_and_publish(environment)
        set_params(seed=7)
        Path("diffusion_core/mine.py").unlink()
    return made
