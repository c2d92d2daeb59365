"""A disk that refuses ends a stage with one sentence that names the file, and leaves nothing half-written."""

import os
import re
import resource
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch

from diffusion_core.config.environment import Environment
from diffusion_core.config.params import load_settings
from diffusion_core.errors import UserError
from diffusion_core.lineage.tensors import save_tensors
from diffusion_core.stages import train
from diffusion_core.training.checkpoint import load_newest
from tests.faults.commands import command, is_killed, succeeds

# The store is another matter; what is logged waits in a small queue.
NO_STORE = {"DIFFUSION_TRACKING_URI": "http://127.0.0.1:9"}


@pytest.fixture
def folder(digits, tmp_path):
    shutil.copytree(digits, tmp_path, dirs_exist_ok=True)
    return tmp_path


def limited(folder, *arguments, largest):
    """Run a command that may write no file of more bytes, as where a disk is full."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env={**os.environ, "DIFFUSION_DEVICE": "cpu", "DIFFUSION_PRECISION": "float32"} | NO_STORE,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        preexec_fn=limit,
    )


def test_a_checkpoint_that_does_not_fit_is_one_sentence_and_keeps_the_last_good_one(folder):
    """The optimizer's tensors are twice the model's, so that a first file is written and the next is not."""
    is_killed(
        folder,
        "train",
        die_at="diffusion_core.training.saving:save_checkpoint:2",
        DIFFUSION_CHECKPOINT_SECONDS="0.001",
    )
    (kept,) = (folder / ".checkpoints").glob("*/step-*")
    size = (kept / "model.safetensors").stat().st_size
    done = limited(folder, "train", largest=size + size // 2)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "optimizer.safetensors (File too large): make room or correct its rights" in done.stderr
    assert load_newest(kept.parent).step == int(kept.name[5:])
    assert not [path for path in folder.rglob("*") if ".tmp-" in path.name]
    succeeds(folder, "train")


def test_an_error_of_the_disk_names_the_file(tmp_path):

    with pytest.raises(OSError, match="No such file or directory") as raised:
        save_tensors({"w": torch.zeros(2)}, tmp_path / "missing" / "model.safetensors")
    assert raised.value.filename == str(tmp_path / "missing" / "model.safetensors")


def test_a_training_that_cannot_fit_is_told_before_it_begins(folder, monkeypatch):
    """A disk of this size is not at hand, so the question about its free space is answered here."""
    monkeypatch.chdir(folder)
    settings = load_settings().train
    environment = Environment(device="cpu", precision="float32", keep_every_images=32)
    free = [0]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free[0]))
    with pytest.raises(
        UserError, match=r"has 0 MB free; .* need \d+ MB: make room, or .*DIFFUSION_CHECKPOINTS"
    ) as raised:
        train.run(settings, environment)
    needed = int(re.search(r"need (\d+) MB", str(raised.value))[1])
    # A copy that is being sent keeps its room when the checkpoint is removed.
    copies = environment.model_copy(update={"checkpoint_copies": "s3://bucket/copies"})
    with pytest.raises(UserError, match="has 0 MB free") as raised:
        train.run(settings, copies)
    assert int(re.search(r"need (\d+) MB", str(raised.value))[1]) > needed
    assert not list(folder.rglob("step-*"))
    assert not (folder / "models").exists()
    # Control: with the room that the sentence names it begins, and that was no more than is used.
    free[0] = (needed + 1) * 10**6
    train.run(settings, environment)
    kept = sum(file.stat().st_size for file in folder.glob(".checkpoints/*/step-*/*.safetensors"))
    weights = (folder / "models/model.safetensors").stat().st_size
    assert 0.5 * needed * 10**6 < kept + weights < 2 * (needed + 1) * 10**6
