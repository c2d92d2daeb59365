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
from diffusion_core.registry.connection import connect
from diffusion_core.stages import clean
from diffusion_core.training.checkpoint import Checkpoint, save_checkpoint
from tests.faults.commands import run
from tests.registry.projects import empty_store

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


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The bytes of a store with a version of another model, which names nothing of these projects."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    file.write_bytes(empty_store())
    add_version(connect(Environment(tracking_uri=f"sqlite:///{file}")), "other", {})
    return file.read_bytes()


def add_version(client, name, tags):
    """Register a version of a model without files, and return its number."""
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    return client.create_model_version(name, "file:///nowhere", tags=tags).version


@pytest.fixture
def project(tmp_path, monkeypatch, store):
    monkeypatch.chdir(tmp_path)
    say("git", "init", "-q", "-b", "main")
    say(*DVC, "init", "-q")
    (tmp_path / "mlflow.db").write_bytes(store)
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

    client = connect(Environment(tracking_uri=f"sqlite:///{project}/mlflow.db"))
    tags = {"git_commit": made, "dvc.out.bin": tagged.parent.name + tagged.name}
    number = add_version(client, "diffusion", tags)

    shown = cleaned(project, capsys, remove=False)
    assert "1 entries of " in shown
    assert of_nothing.exists()
    # The versions of all registered models count, whatever is the name of this environment's.
    cleaned(project, capsys, registered_model="dogs")
    kept = (of_branch, of_tag, of_version, tagged, of_checkout, young)
    assert [path.exists() for path in kept] == [True] * 6
    assert not of_nothing.exists()
    # The control: without the version, what it names would have gone.
    client.delete_model_version("diffusion", number)
    cleaned(project, capsys)
    assert [path.exists() for path in kept] == [True, True, False, False, True, True]


def test_a_store_that_is_new_or_empty_says_nothing_about_the_cache(project, capsys, store):
    """As in a shell without DIFFUSION_TRACKING_URI: it would be a new ./mlflow.db."""
    entry = output(project, b"one")
    output(project, b"two")
    database = project / "mlflow.db"
    database.unlink()
    assert "DVC's cache stays, because the registered versions are not known (" in cleaned(project, capsys)
    assert not database.exists()
    database.touch()
    assert "does not exist: name yours in DIFFUSION_TRACKING_URI" in cleaned(project, capsys)
    assert database.read_bytes() == b""
    database.write_bytes(empty_store())
    assert "has no registered version: if yours are in another store" in cleaned(project, capsys)
    assert entry.exists()
    database.write_bytes(store)
    cleaned(project, capsys)
    assert not entry.exists()


@pytest.mark.parametrize("where", ["a branch", "the checkout"])
def test_while_dvc_cannot_read_what_is_named_the_cache_stays(project, capsys, where):
    first = output(project, b"one")
    commit("one")
    if where == "a branch":
        say("git", "checkout", "-q", "-b", "other")
    named = output(project, b"named in the same place as the conflict")
    commit("two")
    conflict = project / "dvc.yaml"
    conflict.write_text("<<<<<<< HEAD\nstages:\n")
    if where == "a branch":
        say("git", "add", "dvc.yaml")
        say(*GIT, "commit", "-q", "-m", "conflict")
        say("git", "checkout", "-q", "main")
        say(*DVC, "checkout", "-q")
    unneeded = project / ".dvc/cache/files/md5/00" / ("0" * 30)
    unneeded.parent.mkdir()
    unneeded.touch()
    age(unneeded)
    assert "DVC's cache stays: what is needed is not known, because " in cleaned(project, capsys)
    assert all(path.exists() for path in (first, named, unneeded))
    # The control: what nothing names goes once all can be read.
    if where == "a branch":
        say("git", "branch", "-q", "-D", "other")
    else:
        conflict.unlink()
    cleaned(project, capsys)
    assert not unneeded.exists()
    assert (first if where == "a branch" else named).exists()


def test_a_commit_that_alone_says_what_a_version_needs_must_be_there(project, capsys):
    entry = output(project, b"one")
    output(project, b"two")
    client = connect(Environment(tracking_uri=f"sqlite:///{project}/mlflow.db"))
    number = add_version(client, "diffusion", {"git_commit": "c" * 40})
    assert "this clone does not have it" in cleaned(project, capsys)
    assert entry.exists()
    # The control: a version that names its outputs needs no commit.
    client.set_model_version_tag("diffusion", number, "dvc.models", "0" * 32)
    cleaned(project, capsys)
    assert not entry.exists()


@pytest.mark.parametrize("how", ["rotten", "missing", "missing, and in the remote"])
def test_a_list_of_files_that_cannot_be_trusted_keeps_the_cache(project, capsys, how):
    (project / "pictures").mkdir()
    for number in range(2):
        (project / f"pictures/{number}.bin").write_bytes(bytes([number]) * 9)
    say(*DVC, "add", "-q", "pictures")
    if "remote" in how:
        say(*DVC, "remote", "add", "-d", "store", str(project.parent / f"{project.name}-remote"))
        say(*DVC, "push", "-q")
    entries = [*project.glob(".dvc/cache/files/md5/*/*")]
    (listed,) = (path for path in entries if path.suffix == ".dir")
    content = listed.read_bytes()
    listed.chmod(0o644)
    # Still JSON: the hash of one file is another.
    listed.write_bytes(content.replace(content[9:14], b"00000", 1)) if how == "rotten" else listed.unlink()
    unneeded = project / ".dvc/cache/files/md5/00" / ("0" * 30)
    unneeded.parent.mkdir(exist_ok=True)
    unneeded.touch()
    for path in project.glob(".dvc/cache/files/md5/*/*"):
        age(path)
    printed = cleaned(project, capsys)
    is_had = "remote" in how
    assert ("the list of files of the output " in printed) is not is_had
    assert unneeded.exists() is not is_had
    # The control: with the list, what nothing names goes and what it names stays.
    listed.write_bytes(content)
    cleaned(project, capsys)
    assert not unneeded.exists()
    assert all(path.exists() for path in entries)


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


@pytest.mark.parametrize("place", ["a detached commit", "a stash"])
def test_what_git_keeps_outside_branches_is_named_too(project, capsys, place):
    output(project, b"main")
    commit("main")
    if place == "a stash":
        entry = output(project, b"set aside")
        say(*GIT, "stash", "-q")
        say(*DVC, "checkout", "-q")
        gone = ("git", "stash", "drop", "-q")
    else:
        say("git", "checkout", "-q", "--detach")
        entry = output(project, b"of the detached commit")
        commit("detached")
        # Made again since, and not committed.
        output(project, b"again")
        gone = ("git", "checkout", "-q", "-f", "main")
    cleaned(project, capsys)
    assert entry.exists()
    say(*gone)
    cleaned(project, capsys)
    assert not entry.exists()


def test_while_git_does_not_list_the_commits_the_cache_stays(project, capsys, monkeypatch):
    entry = output(project, b"pushed")
    commit("one")
    output(project, b"two")
    commit("two")
    # Git refuses a folder of another user; what DVC reads Git with does not.
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert "DVC's cache stays: `git for-each-ref` fails (" in cleaned(project, capsys)
    assert entry.exists()
    monkeypatch.delenv("GIT_TEST_ASSUME_DIFFERENT_OWNER")
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
    # Not DIFFUSION_DVC_CACHE says that it is shared, but its place.
    say(*DVC, "cache", "dir", "--local", str(project.parent / f"{project.name}-cache"))
    shutil.move(project / ".dvc/cache", project.parent / f"{project.name}-cache")
    pushed, kept = (
        project.parent / f"{project.name}-cache" / path.relative_to(project / ".dvc/cache") for path in (pushed, kept)
    )
    shared = cleaned(project, capsys)
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
