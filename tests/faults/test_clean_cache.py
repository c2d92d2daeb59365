"""Of DVC's cache `diffusion clean` removes what no branch, checkout or registered version names."""

import shutil

import pytest

from diffusion_core.config.environment import Environment
from diffusion_core.registry.connection import connect
from tests.faults.cleaning import add_version, age, cleaned, output
from tests.faults.git_dvc import DVC, GIT, say
from tests.registry.projects import empty_store


@pytest.fixture
def project(dvc_project):
    """In the place of the one of the stages."""
    return dvc_project


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
    assert f"1 entries of {project}/.dvc/cache/files/md5, {of_nothing.stat().st_size} bytes: no branch" in shown
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
    assert f", {kept.stat().st_size} bytes, stay, because the remote lacks them" in shared
    assert [pushed.exists(), kept.exists()] == [False, True]
