"""`diffusion clean` removes what nobody needs, shows it first, and never a training that runs or waits."""

import os
import shutil

import pytest
import torch

from diffusion_core.lineage.checkpoints import LOCK, mark_finished
from diffusion_core.lineage.outbox import OUTBOX, Outbox
from diffusion_core.locks import exclusive_lock
from diffusion_core.training.checkpoint import Checkpoint, save_checkpoint
from tests.faults.cleaning import DEAD, age, cleaned, output
from tests.faults.commands import run


@pytest.fixture
def project(dvc_project):
    """In the place of the one of the stages."""
    return dvc_project


def training(project, name, *, old=True, finished=False):
    folder = project / ".checkpoints" / (name * 16)
    for step in (1, 2):
        save_checkpoint(folder, Checkpoint(step, {"model": {"w": torch.ones(9)}}, {}))
    if finished:
        mark_finished(folder)
    if old:
        age(folder)
    return folder


def test_nothing_is_removed_before_it_is_asked_for(project, capsys):
    old = training(project, "a", finished=True)
    shown = cleaned(project, capsys, remove=False)
    size = sum(file.stat().st_size for file in old.rglob("*") if file.is_file())
    assert f".checkpoints/{'a' * 16}, {size:,} bytes: checkpoints of a finished training" in shown
    assert shown.splitlines()[-1] == f"clean: {size:,} bytes may go: say `diffusion clean --remove`"
    assert old.exists()
    assert cleaned(project, capsys).splitlines()[-1] == f"clean: {size:,} bytes removed"
    assert not old.exists()


def test_a_folder_of_many_bytes_is_shown_in_megabytes(project, capsys):
    old = training(project, "a", finished=True)
    with (old / "large").open("wb") as file:
        file.truncate(2_500_000)
    age(old)
    assert f".checkpoints/{'a' * 16}, 2.5 MB: checkpoints of a finished training" in cleaned(project, capsys)


def test_trainings_that_are_old_go_and_others_stay(project, capsys):
    finished, given_up = training(project, "a", finished=True), training(project, "b")
    young, running, waiting = training(project, "c", old=False), training(project, "d"), training(project, "e")
    Outbox(waiting / OUTBOX).append({"kind": "tag", "key": "a", "value": "b"})
    age(waiting)
    with exclusive_lock(running / LOCK):
        output = cleaned(project, capsys)
    assert [each.exists() for each in (finished, given_up, young, running, waiting)] == [False, False, True, True, True]
    assert "a training given up" in output
    assert f"{'e' * 16} stays: entries wait in it for the tracking store; say `diffusion replay`" in output
    # The control: without the lock it would have gone.
    cleaned(project, capsys)
    assert not running.exists()


def test_a_training_whose_lock_the_disk_refuses_stays_and_the_others_are_looked_at(project, capsys):
    """As of another user; a folder in the place of a file is refused to root too."""
    refused, other = training(project, "a"), training(project, "b")
    (refused / LOCK).unlink(missing_ok=True)
    (refused / LOCK).mkdir()
    text = cleaned(project, capsys, remove=True)
    assert f"{refused.name} stays: " in text
    assert refused.exists()
    assert not other.exists()


def test_damaged_checkpoints_and_leftovers_of_dead_processes_go(project, capsys):
    folder = training(project, "a", old=False)
    damaged, saving = folder / "step-000000001.damaged-0", folder / f"step-000000003.tmp-{DEAD}"
    (folder / "step-000000001").rename(damaged)
    saving.mkdir()
    (project / "data/prepared").mkdir(parents=True)
    (project / "models").mkdir()
    dead, alive = project / f"data/.prepared.tmp-{DEAD}", project / f"data/.prepared.tmp-{os.getpid()}"
    replaced, young = project / f"data/.prepared.old-{DEAD}", project / f"data/.prepared.tmp-{DEAD + 1}"
    for place in (dead, alive, replaced, young):
        place.mkdir()
    weights = project / f"models/.model.safetensors.tmp-{DEAD}"
    weights.touch()
    for path in (damaged, saving, dead, alive, replaced, weights):
        age(path)
    with exclusive_lock(folder / LOCK):
        cleaned(project, capsys)
    # A training of another container, whose processes have other ids, may write it.
    assert saving.exists()
    saving.touch()
    cleaned(project, capsys)
    assert saving.exists()
    age(saving)
    cleaned(project, capsys)
    assert [path.exists() for path in (dead, replaced, weights, saving)] == [False] * 4
    assert [path.exists() for path in (alive, young)] == [True, True]
    assert [path.name for path in folder.glob("step*")] == ["step-000000002"]


def test_the_last_copy_of_a_folder_and_what_is_not_the_projects_stay(project, capsys):
    only = project / f"data/.raw.old-{DEAD}"
    own = [project / name for name in (".env.old-20240101", ".env.old-20240101123000", f".env.old-{DEAD}")]
    for path in (only, *own, project / "data/.raw.old-20240101", project / ".checkpoints/notes"):
        path.mkdir(parents=True)
        (path / "x").write_bytes(b"the only copy")
        age(path)
    cleaned(project, capsys)
    assert all(path.exists() for path in (only, *own, project / ".checkpoints/notes"))
    # The control: once its folder is there again, it is a leftover. A date is never one.
    (project / "data/raw").mkdir()
    cleaned(project, capsys)
    assert not only.exists()
    assert (project / "data/.raw.old-20240101").exists()
    # The control: a training's folder would go.
    (project / ".checkpoints/notes/finished").touch()
    age(project / ".checkpoints/notes")
    cleaned(project, capsys)
    assert not (project / ".checkpoints/notes").exists()


def test_what_a_killed_training_or_removal_left_goes_with_its_folder_at_once(project, capsys):
    """It is listed once, and the cache is looked at too."""
    folder, trash = training(project, "a"), project / f".checkpoints/.{'b' * 16}.trash-{DEAD}"
    (folder / f"step-000000003.tmp-{DEAD}").mkdir()
    (trash / "step-000000001").mkdir(parents=True)
    age(folder)
    age(trash)
    entry = output(project, b"one")
    output(project, b"two")
    printed = cleaned(project, capsys)
    assert printed.count("a" * 16) == 1
    assert printed.count("b" * 16) == 1
    assert not any(path.exists() for path in (folder, trash, entry))


def test_downloads_that_no_ingest_uses_go(project, capsys):
    downloads = project / "downloads"
    for name in ("used", "unused"):
        (downloads / name).mkdir(parents=True)
        (downloads / name / "x").write_bytes(b"1")
        (downloads / name / LOCK).touch()
    age(downloads)
    (downloads / "used" / LOCK).touch()
    cleaned(project, capsys, downloads=downloads)
    assert [path.name for path in downloads.iterdir()] == ["used"]


def test_the_command_shows_and_removes(project):
    old = training(project, "a", finished=True)
    shown = run(project, "clean")
    assert shown.returncode == 0, shown.stderr
    assert old.exists()
    assert run(project, "clean", "--remove", "--days", "40").returncode == 0
    assert old.exists()
    assert run(project, "clean", "--remove").returncode == 0
    assert not old.exists()
    shutil.rmtree(project / ".git")
    alone = run(project, "clean")
    assert alone.returncode == 2
    assert "error: DVC refuses: " in alone.stderr
    assert "Traceback" not in alone.stderr
