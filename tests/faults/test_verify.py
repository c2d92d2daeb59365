"""`diffusion verify` finds each byte that flipped in DVC's cache or the checkout, and repairs it where it can.

DVC itself finds none of these: it trusts files of its cache that are not writable, and unchanged times.
"""

import shutil

import pytest

from diffusion_core.lineage import dvc_cache, hashed_files
from diffusion_core.stages import verify
from tests.faults.commands import is_killed, run
from tests.faults.git_dvc import DVC, GIT, say
from tests.faults.verifying import entry, environment_of, flip, verified


@pytest.fixture
def project(whole_project):
    """In the place of the one of the stages."""
    return whole_project


def test_nothing_rotten_is_nothing_found(project, capsys):
    assert verified(project) == (0, [])
    verify.run(environment_of(project), repair=False, as_json=False)
    files = [each for folder in ("pictures", "models") for each in (project / folder).iterdir()]
    size, model = (sum(each.stat().st_size for each in some) for some in (files, files[3:]))
    entries = [*project.glob(".dvc/cache/files/md5/*/*")]
    weights = (project / "models/model.safetensors").stat().st_size
    assert capsys.readouterr().out == (
        f"verify: all is whole; hashed: DVC's cache (7 files, {sum(each.stat().st_size for each in entries):,} bytes),"
        f" the checkout (5 files, {size:,} bytes), models (1 file, {weights:,} bytes),"
        f" the champion of diffusion (2 files, {model:,} bytes)\n"
    )


def test_a_rotten_entry_of_the_cache_comes_back_from_the_remote(project):
    path = entry(project, project / "pictures/1.bin")
    whole = path.read_bytes()
    flip(path)
    # The control: DVC takes it as whole, and would check it out.
    assert "up to date" in say(*DVC, "status")
    code, (found,) = verified(project)
    assert code == 1
    assert (found["what"], found["is_repaired"]) == (str(path), False)
    assert found["problem"].endswith("and the checkout has it")
    (project / "pictures/1.bin").unlink()
    _, (found,) = verified(project)
    assert found["problem"] == (
        "the copy of pictures/1.bin of pictures.dvc does not have the hash in its name, and the remote has it"
    )
    assert found["remedy"] == "say `diffusion verify --repair`"
    assert path.read_bytes() != whole
    code, (found,) = verified(project, repair=True)
    assert (code, found["is_repaired"]) == (0, True)
    assert path.read_bytes() == whole
    assert path.stat().st_mode & 0o777 == 0o444
    assert verified(project) == (0, [])


def test_without_a_remote_it_comes_back_from_the_checkout(project):
    path = entry(project, project / "pictures/1.bin")
    whole = path.read_bytes()
    flip(path)
    shutil.rmtree(project.parent / "remote")
    code, (found,) = verified(project, repair=True)
    assert (code, found["is_repaired"]) == (0, True)
    assert path.read_bytes() == whole


def test_what_is_nowhere_else_is_said_and_not_repaired(project):
    file = project / "pictures/1.bin"
    path = entry(project, file)
    flip(path)
    rotten = path.read_bytes()
    file.unlink()
    shutil.rmtree(project.parent / "remote")
    code, (found,) = verified(project, repair=True)
    assert (code, found["is_repaired"]) == (1, False)
    assert found["problem"].endswith(
        "neither the checkout nor a registered version has it whole, and the remote does not have it"
    )
    assert found["remedy"] == (
        "remove this file, and then bring pictures back from a backup, and run `dvc add pictures`"
    )
    assert path.read_bytes() == rotten
    say(*DVC, "remote", "remove", "store")
    for repair in (True, False):
        _, (found,) = verified(project, repair)
        assert found["problem"].endswith("and no remote is configured")
        assert "--repair" not in found["remedy"]


def test_the_remedy_for_an_output_of_a_stage_that_is_nowhere_else_works(project):
    (project / "dvc.yaml").write_text("stages:\n  make:\n    cmd: echo 1 > made\n    outs: [made]\n")
    say(*DVC, "repro", "-q")
    path = entry(project, project / "made")
    flip(path)
    (project / "made").unlink()
    _, (found,) = verified(project, repair=True)
    assert "the copy of made of the stage make does not have the hash in its name" in found["problem"]
    assert found["remedy"] == "remove this file, and then run `dvc repro make`"
    # The control: DVC takes the rotten entry for whole.
    say(*DVC, "repro", "make")
    assert (project / "made").read_text() != "1\n"
    (project / "made").unlink()
    path.unlink()
    say(*DVC, "repro", "make")
    assert (project / "made").read_text() == "1\n"
    assert verified(project) == (0, [])


def test_a_rotten_file_of_the_checkout_comes_back_from_the_cache(project):
    file = project / "pictures/2.bin"
    whole = file.read_bytes()
    flip(file)
    assert "up to date" in say(*DVC, "status")
    code, (found,) = verified(project)
    assert (code, found["what"]) == (1, "pictures/2.bin")
    assert "it is of pictures.dvc" in found["problem"]
    assert verified(project, repair=True)[0] == 0
    assert file.read_bytes() == whole
    assert verified(project) == (0, [])


def test_what_a_stage_has_made_since_is_not_rotten(project):
    """And is not replaced by what DVC has recorded."""
    (project / "pictures/2.bin").write_bytes(b"new")
    assert verified(project, repair=True) == (0, [])
    assert (project / "pictures/2.bin").read_bytes() == b"new"


def during(monkeypatch, name, file, act):
    """Run `act` once, before the first call of a function of the module `hashed_files` with this file."""
    real, done = getattr(hashed_files, name), []

    def acting(path, *arguments):
        if path.name.startswith(file) and not done:
            done.append(act())
        return real(path, *arguments)

    monkeypatch.setattr(hashed_files, name, acting)


@pytest.mark.parametrize(("name", "file"), [("is_sound", "2.bin"), ("flush", ".2.bin.tmp-")], ids=["hash", "replace"])
@pytest.mark.parametrize("is_protected", [True, False])
def test_what_a_stage_writes_meanwhile_is_never_replaced(project, monkeypatch, name, file, is_protected):
    """DVC runs stages without its lock."""
    written = project / "pictures/2.bin"
    whole = written.read_bytes()
    flip(written)
    during(monkeypatch, name, file, lambda: (written.unlink(), written.write_bytes(b"new")))
    if not is_protected:
        # The control: it is the second look at the file's time that protects it.
        monkeypatch.setattr(dvc_cache.Cache, "_seems_unchanged", lambda *_: True)
    verified(project, repair=True)
    assert written.read_bytes() == (b"new" if is_protected else whole)


def test_what_a_stage_removes_meanwhile_is_not_rotten(project, monkeypatch):
    written = project / "pictures/2.bin"
    during(monkeypatch, "is_sound", "2.bin", written.unlink)
    assert verified(project, repair=True) == (0, [])
    assert not written.exists()


def test_a_rotten_list_of_files_comes_back_and_its_files_are_looked_at(project):
    listed = next(path for path in project.glob(".dvc/cache/files/md5/*/*.dir") if b"1.bin" in path.read_bytes())
    whole, file = listed.read_bytes(), entry(project, project / "pictures/1.bin")
    listed.chmod(0o644)
    # Still JSON: another hash.
    listed.write_bytes(whole.replace(file.name.encode(), file.name[::-1].encode()))
    flip(file)
    code, found = verified(project, repair=True)
    assert (code, [each["what"] for each in found]) == (0, [str(listed), str(file)])
    assert found[0]["problem"].startswith("the list of files of pictures of pictures.dvc does not have the hash")
    assert listed.read_bytes() == whole
    assert file.read_bytes() == (project / "pictures/1.bin").read_bytes()
    assert verified(project) == (0, [])


def test_a_copy_that_is_rotten_too_is_passed_over(project):
    file = project / "pictures/1.bin"
    path = entry(project, file)
    whole, name = path.read_bytes(), f"{path.parent.name}/{path.name}"
    flip(path)
    flip(project.parent / "remote/files/md5" / name)
    rotten = path.read_bytes()
    saved = file.rename(project / "saved.bin")
    code, (found,) = verified(project, repair=True)
    assert (code, found["is_repaired"], path.read_bytes()) == (1, False, rotten)
    assert "and that of the remote has rotted too" in found["problem"]
    saved.rename(file)
    code, (found,) = verified(project, repair=True)
    assert (code, found["is_repaired"], path.read_bytes()) == (0, True, whole)


def test_a_remote_that_is_down_is_said_and_the_rest_is_looked_at(project, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    first, second = project / "pictures/1.bin", project / "pictures/2.bin"
    entries = [entry(project, first), entry(project, second)]
    (weights,) = (project / "mlartifacts").rglob("model.safetensors")
    for path in (*entries, weights):
        flip(path)
    for name, value in {"url": "s3://b/x", "endpointurl": "http://127.0.0.1:9", "access_key_id": "a"}.items():
        say(*DVC, "remote", "modify", "--local", "store", name, value)
    say(*DVC, "remote", "modify", "--local", "store", "secret_access_key", "b")
    first.unlink()
    code, found = verified(project, repair=True)
    assert code == 1
    repaired = {each["what"]: each["is_repaired"] for each in found}
    # The checkout has the second.
    assert repaired == {str(entries[0]): False, str(entries[1]): True, "version 1 of diffusion": True}
    (lost,) = (each for each in found if each["what"] == str(entries[0]))
    assert "DVC's remote cannot be used (" in lost["problem"]
    assert "start it, or correct it with `diffusion remote` and say `diffusion verify --repair`" in lost["remedy"]
    assert entries[1].read_bytes() == second.read_bytes()


def test_a_kill_while_an_entry_is_replaced_leaves_the_entry(project):
    path = entry(project, project / "pictures/1.bin")
    flip(path)
    rotten = path.read_bytes()
    is_killed(project, "verify", "--repair", die_at="diffusion_core.lineage.hashed_files:flush:1")
    (left,) = path.parent.glob(".*")
    assert path.read_bytes() == rotten
    assert verified(project, repair=True)[0] == 0
    assert not left.exists()
    assert path.read_bytes() == (project / "pictures/1.bin").read_bytes()


def test_a_branch_that_cannot_be_read_is_said(project):
    say("git", "checkout", "-q", "-b", "other")
    (project / "dvc.yaml").write_text("<<<<<<< HEAD\nstages:\n")
    say("git", "add", "dvc.yaml")
    say(*GIT, "commit", "-q", "-m", "conflict")
    say("git", "checkout", "-q", "-")
    flip(entry(project, project / "pictures/1.bin"))
    code, found = verified(project)
    assert code == 1
    assert found[0]["what"] == "the revision other"
    assert "it cannot be read (" in found[0]["problem"]
    assert "does not have the hash in its name" in found[1]["problem"]


def test_outside_a_project_it_is_one_sentence(tmp_path):
    done = run(tmp_path, "verify")
    assert done.returncode == 2
    assert done.stderr.endswith("error: .dvc is missing: run the command from the project's folder\n")
