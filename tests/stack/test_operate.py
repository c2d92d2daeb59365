"""The commands of docs/operate.md that can run on one machine are run, as one shell would run them."""

import os
import re
import subprocess

import pytest

from tests.flows.repository import CHECKOUT
from tests.stack.project import write_project

TEXT = (CHECKOUT / "docs/operate.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^```sh run\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)

PICTURES = "PICTURES=~/pictures"


@pytest.fixture
def project(place, monkeypatch):
    """A project of somebody who has cloned it and made its environment."""
    folder = place / "operated"
    write_project(folder)
    params = folder / "params.yaml"
    text = params.read_text().replace("s3://images/digits", "s3://images/pictures")
    params.write_text(text.replace("images: 12800", "images: 1280"))
    (folder / ".venv").symlink_to(CHECKOUT / ".venv")
    # `make` would renew an environment that is older than the lock.
    os.utime(folder / "requirements.lock", (0, 0))
    for name, value in {"GIT_AUTHOR_NAME": "someone", "GIT_AUTHOR_EMAIL": "someone@localhost"}.items():
        monkeypatch.setenv(name, value)
        monkeypatch.setenv(name.replace("AUTHOR", "COMMITTER"), value)
    monkeypatch.setenv("COLUMNS", "200")
    yield folder
    subprocess.run(["make", "stack-down"], cwd=folder, check=True, capture_output=True)


def test_every_command_that_the_guide_shows_works_in_its_order(project, images):
    script = "".join(COMMANDS)
    assert PICTURES in script
    script = script.replace(PICTURES, f"PICTURES={images}")
    assert len(COMMANDS) > 10
    log = project.parent / "operate.log"
    with log.open("w") as output:
        done = subprocess.run(
            ["bash", "-euxo", "pipefail", "-c", script], cwd=project, stdout=output, stderr=output, check=False
        )
    text = log.read_text()
    assert done.returncode == 0, text
    assert (project / "models/model.safetensors").exists()
    assert "frechet" in text
    assert len(list(project.parent.glob("stack-20*/home.json"))) == 1
    assert text.count("stopped: worker, prefect, mlflow, s3, postgres") >= 4


def test_make_targets_and_files_that_the_guide_names_exist():
    targets = set(re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)", "\n".join(re.findall(r"`(make [^`]*)`", TEXT)))) <= targets
    for name in re.findall(r"`((?:docker|flows|docs|tests)/[\w./-]+)`", TEXT):
        assert (CHECKOUT / name).exists(), name
    for name in re.findall(r"\]\((images/[\w.-]+)\)", TEXT):
        assert (CHECKOUT / "docs" / name).exists(), name
