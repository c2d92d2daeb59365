"""Checkpoints of finished trainings go when others begin, but not before it is sure that nobody needs them."""

import os
import shutil
import time

import pytest

from diffusion_core.lineage.checkpoints import (
    FINISHED,
    LOCK,
    SECONDS_TO_RECORD,
    checkpoints,
    mark_finished,
    mark_unfinished,
)
from diffusion_core.lineage.outbox import OUTBOX, Outbox
from diffusion_core.stages import keeping, verify
from diffusion_core.stages.finding import Hashed
from diffusion_core.training.checkpoint import save_checkpoint
from tests.faults.commands import succeeds
from tests.faults.copies import checkpoint
from tests.faults.test_end_of_training import OUTPUTS, change
from tests.faults.verifying import environment_of


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The folder of the checkpoints of a checkout, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / ".checkpoints"


def finished(root, name):
    folder = root / (name * 16)
    save_checkpoint(folder, checkpoint(1))
    mark_finished(folder)
    return folder


def end_long_ago(folder):
    before = time.time() - SECONDS_TO_RECORD - 60
    os.utime(folder / FINISHED, (before, before))


@pytest.mark.parametrize("place", ["shared", "other/.stack/checkpoints"])
def test_a_model_is_safe_while_dvc_in_another_checkout_records_it(digits, tmp_path, place):
    """It is killed before it has, and deletes the outputs; another training in the shared folder has begun since."""
    shared, one, other = (tmp_path / name for name in (place, "one", "other"))
    for checkout in (one, other):
        shutil.copytree(digits, checkout)
    succeeds(one, "train", DIFFUSION_CHECKPOINTS=str(shared))
    (first,) = shared.iterdir()
    change(other, seed=1)
    # A finished training is not one that could have been resumed.
    assert "of another training" not in succeeds(other, "train", DIFFUSION_CHECKPOINTS=str(shared)).stdout
    for output in OUTPUTS:
        (one / output).unlink()
    assert "resumes after 320 images" in succeeds(one, "train", DIFFUSION_CHECKPOINTS=str(shared)).stdout
    # The control: once it has had its time, another training removes the checkpoints.
    end_long_ago(first)
    change(other, seed=2)
    succeeds(other, "train", DIFFUSION_CHECKPOINTS=str(shared))
    assert not first.exists()


def begin_again(folder):
    """As a training that is killed at its first step."""
    mark_unfinished(folder)


def log_more(folder):
    Outbox(folder / OUTBOX).append({"kind": "tag", "key": "a", "value": "b"})


@pytest.mark.parametrize(("meanwhile", "stays"), [(begin_again, True), (log_more, True), (lambda _: None, False)])
def test_what_changes_before_the_lock_is_seen(root, monkeypatch, meanwhile, stays):
    """Removing others takes a while. The last one is the control."""
    folder = finished(root, "a")
    lock = keeping.exclusive_lock

    def lock_later(file):
        meanwhile(file.parent)
        return lock(file)

    monkeypatch.setattr(keeping, "exclusive_lock", lock_later)
    keeping._remove_finished(root / ("b" * 16))
    assert folder.exists() == stays
    assert not stays or checkpoints(folder)


def test_a_folder_of_another_user_stops_no_training(root, caplog):
    foreign, folder = finished(root, "a"), finished(root, "b")
    # As where the rights forbid to open it, which do not bind everyone.
    (foreign / LOCK).mkdir()
    keeping._remove_finished(root / ("c" * 16))
    assert f"{foreign} stays, although its training has ended: " in caplog.text
    assert foreign.exists()
    # The control.
    assert not folder.exists()


def test_what_is_being_removed_is_no_training(root, tmp_path):
    folder = finished(root, "a")
    assert Outbox(folder / OUTBOX).key
    (checkpoints(folder)[0] / "model.safetensors").unlink()
    trash = folder.rename(root / f".{folder.name}.trash-{os.getppid()}")
    assert list(verify._checkpoints(environment_of(tmp_path), repair=True, hashed=Hashed())) == []
    assert Outbox.all(root) == []
    # The control: under its own name it is one.
    trash.rename(folder)
    assert len(list(verify._checkpoints(environment_of(tmp_path), repair=True, hashed=Hashed()))) == 1
    assert [outbox.folder for outbox in Outbox.all(root)] == [folder / OUTBOX]
