"""What README shows is run."""

import re
import subprocess
import sys
from pathlib import Path

BLOCKS = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_librarys_examples_run_one_after_the_other(tmp_path):
    quickstart, trainer, champion = BLOCKS
    assert "champion" in champion
    small = {"dim=64": "dim=8", "steps=50": "steps=2", "steps=20": "steps=2", "images=1_000": "images=16"}
    code = quickstart + trainer
    for shown, run in small.items():
        assert shown in code
        code = code.replace(shown, run)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_command_and_variable_that_readme_names_exists():
    text = Path("README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", Path("Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+)", text)) - {"demo", "test", "serve", "help"} == set()
    assert {"demo", "test", "serve", "help", "setup", "lint", "lock"} <= targets
    environment = Path("diffusion_core/environment.py").read_text(encoding="utf-8")
    for variable in re.findall(r"DIFFUSION_([A-Z_]+)", text):
        assert f"    {variable.lower()}:" in environment, variable


def test_no_figure_was_left_out():
    assert re.findall(r"@[A-Z]+@", Path("README.md").read_text(encoding="utf-8")) == []
