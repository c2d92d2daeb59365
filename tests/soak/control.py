"""The soak finds a checkpoint that does not restore the averaged weights; `make soak` begins with this control."""

import os
import shutil
import subprocess
import sys

from tests.flows.repository import CHECKOUT
from tests.soak.project import COPIED

RESTORES_THE_EMA = '        self.ema.module.model.load_state_dict(tensors["ema"])\n'


def soak(folder, *arguments):
    """Run the soak to its end with its files below a folder; return its exit code and what it prints."""
    command = [sys.executable, "-m", "tests.soak", *arguments]
    done = subprocess.run(
        command, cwd=CHECKOUT, env={**os.environ, "TMPDIR": str(folder)}, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_a_checkpoint_that_restores_no_average_is_found(tmp_path):
    for name in COPIED:
        copy = shutil.copytree if (CHECKOUT / name).is_dir() else shutil.copy
        copy(CHECKOUT / name, tmp_path / name)
    trainer = tmp_path / "diffusion_core/training/trainer.py"
    code = trainer.read_text(encoding="utf-8")
    assert RESTORES_THE_EMA in code
    trainer.write_text(code.replace(RESTORES_THE_EMA, ""), encoding="utf-8")
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "--all"], cwd=tmp_path, check=True)
    code, output = soak(tmp_path, "--minutes", "0.1", "--seed", "49", "--rounds", "training", "--code", str(tmp_path))
    print(output)
    assert code == 1, output
    assert "model.safetensors differs" in output
    assert "soak: seed 49, round-0:" in output
