"""`diffusion clean` removes what nobody needs, shows it first, and never what a champion needs."""

import os
import shutil
import subprocess
import sys
import time

import pytest
import torch

from diffusion_core.config.environment import Environment
from diffusion_core.files import exclusive_lock
from diffusion_core.lineage.checkpoints import LOCK, mark_finished
from diffusion_core.lineage.outbox import OUTBOX, Outbox
from diffusion_core.registry.connection import connect, experiment_id
from diffusion_core.registry.publication import register
from diffusion_core.stages import clean
from diffusion_core.training.checkpoint import Checkpoint, save_checkpoint
from tests.faults.commands import run
from tests.registry.projects import empty_store, write_model

DVC = [sys.executable, "-m", "dvc"]
GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@localhost"]
LONG_AGO = time.time() - 30 * 24 * 3600
DEAD = 2**22 + 1


def say(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def age(path):
    """Make a file, or all files of a folder, a month old."""
    for file in (path, *path.rglob("*")):
        os.utime(file, (LONG_AGO, LONG_AGO))


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    say("git", "init", "-q", "-b", "main")
    say(*DVC, "init", "-q")
    (tmp_path / "mlflow.db").write_bytes(empty_store())
    return tmp_path


def cleaned(project, capsys, remove=True, **options):
    environment = Environment(tracking_uri=f"sqlite:///{project}/mlflow.db", **options)
    clean.run(environment, 7, remove)
    return capsys.readouterr().out


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
    assert f".checkpoints/{'a' * 16}, 0.0 MB: checkpoints of a finished training" in shown
    assert shown.splitlines()[-1].endswith("MB may go: say `diffusion clean --remove`")
    assert old.exists()
    assert cleaned(project, capsys).splitlines()[-1].endswith("MB removed")
    assert not old.exists()


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


def test_damaged_checkpoints_and_leftovers_of_dead_processes_go(project, capsys):
    folder = training(project, "a", old=False)
    (folder / "step-000000001").rename(folder / "step-000000001.damaged-0")
    age(folder / "step-000000001.damaged-0")
    (project / "data").mkdir()
    dead, alive = project / f"data/.prepared.tmp-{DEAD}", project / f"data/.prepared.tmp-{os.getpid()}"
    for place in (dead, alive):
        place.mkdir()
    saving = folder / f"step-000000003.tmp-{DEAD}"
    saving.mkdir()
    cleaned(project, capsys)
    assert not dead.exists()
    assert not saving.exists()
    assert alive.exists()
    assert [path.name for path in folder.glob("step*")] == ["step-000000002"]


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


def output(project, content):
    """Record a new content of the output `out.bin`, and return its entry in the cache."""
    (project / "out.bin").write_bytes(content)
    say(*DVC, "add", "-q", "out.bin")
    (entry,) = (path for path in project.glob(".dvc/cache/files/md5/*/*") if path.read_bytes() == content)
    age(entry)
    return entry


def commit(message):
    say("git", "add", "-A", "--", "out.bin.dvc", ".dvc", ".gitignore")
    say(*GIT, "commit", "-q", "-m", message)
    return say("git", "rev-parse", "HEAD").strip()


def test_entries_of_the_cache_that_nothing_names_go_and_those_of_a_champion_stay(project, capsys):
    of_branch = output(project, b"a branch")
    commit("branch")
    say("git", "branch", "other")
    of_tag = output(project, b"a tag")
    commit("tag")
    say("git", "tag", "v1")
    of_version = output(project, b"a version's commit")
    made = commit("version")
    of_nothing = output(project, b"nothing")
    commit("nothing")
    tagged = output(project, b"a version's tag")
    of_checkout = output(project, b"the checkout")
    # History that no branch names any more, as after a rebase.
    commit("checkout")
    say("git", "reset", "-q", "--soft", "v1")
    commit("squashed")
    young = output(project, b"young")
    young.touch()
    (project / "out.bin").write_bytes(b"the checkout")
    say(*DVC, "add", "-q", "out.bin")
    age(of_checkout)

    environment = Environment(tracking_uri=f"sqlite:///{project}/mlflow.db")
    client = connect(environment)
    write_model(project / "models")
    run_of_training = client.create_run(experiment_id(client, environment))
    tags = {"git_commit": made, "dvc.out.bin": tagged.parent.name + tagged.name}
    register(client, run_of_training, environment.registered_model, project / "models", tags)

    shown = cleaned(project, capsys, remove=False)
    assert "1 entries of " in shown
    assert of_nothing.exists()
    cleaned(project, capsys)
    kept = (of_branch, of_tag, of_version, tagged, of_checkout, young)
    assert [path.exists() for path in kept] == [True] * 6
    assert not of_nothing.exists()
    # The control: without the version, what it names would have gone.
    client.delete_model_version(environment.registered_model, "1")
    cleaned(project, capsys)
    assert [path.exists() for path in kept] == [True, True, False, False, True, True]


def test_branches_of_the_remote_are_branches(project, capsys):
    entry = output(project, b"pushed")
    commit("pushed")
    origin = project.parent / f"{project.name}-origin"
    say("git", "clone", "-q", "--bare", str(project), str(origin))
    say("git", "remote", "add", "origin", str(origin))
    say("git", "fetch", "-q", "origin")
    output(project, b"now")
    say("git", "add", "-A", "--", "out.bin.dvc")
    say(*GIT, "commit", "-q", "--amend", "-m", "amended")
    cleaned(project, capsys)
    assert entry.exists()
    say("git", "remote", "remove", "origin")
    cleaned(project, capsys)
    assert not entry.exists()


def test_while_the_registered_versions_are_not_known_the_cache_stays(project, capsys):
    entry = output(project, b"one")
    output(project, b"two")
    whole = (project / "mlflow.db").read_bytes()
    (project / "mlflow.db").write_bytes(b"no database")
    assert "the registered versions are not known (" in cleaned(project, capsys)
    assert entry.exists()
    (project / "mlflow.db").write_bytes(whole)
    cleaned(project, capsys)
    assert not entry.exists()


def test_of_a_shared_cache_goes_what_can_be_pulled_again(project, capsys):
    say(*DVC, "remote", "add", "-d", "store", str(project.parent / f"{project.name}-remote"))
    pushed = output(project, b"pushed")
    say(*DVC, "push", "-q")
    kept = output(project, b"not pushed")
    output(project, b"now")
    shared = cleaned(project, capsys, dvc_cache=project / ".dvc/cache")
    assert "1 entries of " in shared
    assert "stay, because the remote lacks them" in shared
    assert [pushed.exists(), kept.exists()] == [False, True]


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
