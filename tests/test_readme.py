"""What README and docs/library.md show is run."""

import re
import subprocess
import sys
from pathlib import Path

import torch
from typer.main import get_command

from diffusion_core import Unet
from diffusion_core.__main__ import application
from diffusion_core.config.environment import DEPLOYMENT, Environment
from diffusion_core.registry.connection import connect
from diffusion_core.registry.experiments import experiment_id
from diffusion_core.registry.publication import register
from tests.registry.projects import new_environment, write_model

README, LIBRARY = (Path(name).read_text(encoding="utf-8") for name in ("README.md", "docs/library.md"))
(QUICKSTART,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
TRAINER, PARTS, IMPORTED, SAFE_CHAMPION, CHAMPION = re.findall(r"```python\n(.*?)```", LIBRARY, re.DOTALL)


def run(code, small, folder):
    """Run what README shows, with the numbers of `small` made small."""
    for shown, instead in small.items():
        assert shown in code
        code = code.replace(shown, instead)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_librarys_examples_run_one_after_the_other(tmp_path):
    small = {"dim=64": "dim=8", "steps=50": "steps=2", "steps=20": "steps=2", "images=1_000": "images=16"}
    run(QUICKSTART + TRAINER, small, tmp_path)


def test_the_parts_by_themselves(tmp_path):
    run(PARTS, {"dim=64": "dim=8", "steps=20": "steps=2"}, tmp_path)


def test_readme_is_short():
    assert len(README.splitlines()) <= 130


def test_an_imported_checkpoint_is_loaded_as_it_is_shown(tmp_path):
    torch.save(Unet(8, dim_mults=(1, 2)).state_dict(), tmp_path / "model-100.pt")
    command = re.search(r"\.venv/bin/diffusion (import .*)", LIBRARY).group(1)
    subprocess.run([sys.executable, "-m", "diffusion_core", *command.split()], cwd=tmp_path, check=True)
    small = {"steps=50": "steps=2"}
    assert run(IMPORTED + "\nprint(images.shape)", small, tmp_path) == "torch.Size([4, 3, 64, 64])\n"


def test_the_champion_is_loaded_as_it_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environment = new_environment(tmp_path)
    client = connect(environment)
    write_model(tmp_path / "models", num_classes=4)
    training = client.create_run(experiment_id(client, environment))
    version = register(client, training, environment.registered_model, tmp_path / "models", {})
    client.set_registered_model_alias(version.name, "champion", version.version)
    shown = run(SAFE_CHAMPION + "\nprint(tuple(images.shape))", {"steps=25": "steps=2"}, tmp_path)
    assert shown == "(4, 1, 8, 8)\n"
    shapes = "\nprint(made['images'].shape, threes['images'].shape, made['images'].dtype)"
    # The small model has eight timesteps.
    assert run(
        CHAMPION + shapes, {'"steps": 25': '"steps": 2', '{"seed": 7}': '{"steps": 2, "seed": 7}'}, tmp_path
    ) == ("(4, 8, 8, 1) (2, 8, 8, 1) uint8\n")


PAGES = ("README.md", *map(str, Path("docs").glob("*.md")))


def test_every_command_and_variable_that_the_pages_name_exists():
    text = "\n".join(Path(page).read_text(encoding="utf-8") for page in PAGES)
    targets = set(re.findall(r"^([a-z-]+):", Path("Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets
    assert {"demo", "test", "serve", "stack", "stack-down", "deploy"} <= set(re.findall(r"make ([a-z-]+)", text))
    known = {name.upper() for name in Environment.model_fields} | set(DEPLOYMENT)
    assert set(re.findall(r"DIFFUSION_([A-Z0-9_]+)", text)) <= known
    devices = Path("docs/devices.md").read_text(encoding="utf-8")
    assert {name.upper() for name in Environment.model_fields} == set(re.findall(r"DIFFUSION_([A-Z0-9_]+)", devices))
    groups = get_command(application).commands
    for word in re.findall(r"\.venv/bin/diffusion ([a-z][a-z-]+)", text):
        assert word in groups, word
