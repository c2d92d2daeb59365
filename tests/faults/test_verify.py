"""`diffusion verify` finds each byte that flipped in what is kept, and repairs it where its bytes can be had again.

DVC itself finds none of these: it trusts files of its cache that are not writable, and unchanged times.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from mlflow import MlflowClient

from diffusion_core.config.environment import Environment
from diffusion_core.lineage import dvc_cache, hashed_files
from diffusion_core.lineage.checkpoints import checkpoints
from diffusion_core.registry.connection import connect, experiment_id
from diffusion_core.registry.publication import register
from diffusion_core.registry.versions import load_version
from diffusion_core.stages import verify
from diffusion_core.training.checkpoint import Checkpoint, save_checkpoint
from tests.faults.commands import is_killed, run
from tests.registry.projects import new_environment, write_model

DVC = [sys.executable, "-m", "dvc"]
GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@localhost"]


def flip(file):
    """Flip a bit as a disk does: time and mode stay."""
    before, mode = file.stat(), file.stat().st_mode
    file.chmod(0o644)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    file.chmod(mode)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def say(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A project with a folder, a model and a champion, all of it in DVC's cache and in its remote."""
    folder = tmp_path_factory.mktemp("whole") / "project"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        say("git", "init", "-q")
        say(*DVC, "init", "-q")
        say(*DVC, "remote", "add", "-d", "store", str(folder.parent / "remote"))
        for number in range(3):
            file = folder / f"pictures/{number}.bin"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(bytes([number]) * 1000)
        write_model(folder / "models")
        say(*DVC, "add", "-q", "pictures", "models")
        say(*DVC, "push", "-q")
        say(*GIT, "add", "-A")
        say(*GIT, "commit", "-q", "-m", "data")
        environment = new_environment(folder)
        client = connect(environment)
        training = client.create_run(experiment_id(client, environment))
        version = register(client, training, environment.registered_model, folder / "models", {})
        client.set_registered_model_alias(version.name, "champion", version.version)
    return folder


@pytest.fixture
def project(whole, tmp_path, monkeypatch):
    """The project as the working directory; each test gets it whole, as the paths in its store are absolute."""
    saved = tmp_path / "saved"
    shutil.copytree(whole.parent, saved, symlinks=True)
    monkeypatch.chdir(whole)
    # DVC notes the time and hash of each file.
    say(*DVC, "status")
    yield whole
    # The database keeps its file, which MLflow holds open.
    for path in (*whole.parent.glob("remote"), *(each for each in whole.iterdir() if each.name != "mlflow.db")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(saved, whole.parent, symlinks=True, dirs_exist_ok=True)


def environment_of(folder):
    return Environment(tracking_uri=f"sqlite:///{folder}/mlflow.db", device="cpu")


def verified(project, repair=False):
    """Return the exit code, and the findings as JSON."""
    output = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", output.append)
        try:
            verify.run(environment_of(project), repair, as_json=True)
        except SystemExit as left:
            return left.code, json.loads(output[0])["findings"]
    return 0, json.loads(output[0])["findings"]


def entry(project, path):
    """The file in the cache of a file of the checkout."""
    (found,) = (each for each in project.glob(".dvc/cache/files/md5/*/*") if each.read_bytes() == path.read_bytes())
    return found


def test_nothing_rotten_is_nothing_found(project):
    assert verified(project) == (0, [])


def test_a_rotten_entry_of_the_cache_comes_back_from_the_remote(project):
    path = entry(project, project / "pictures/1.bin")
    whole = path.read_bytes()
    flip(path)
    # The control: DVC takes it as whole, and would check it out.
    assert "up to date" in say(*DVC, "status")
    code, (found,) = verified(project)
    assert code == 1
    assert (found["what"], found["is_repaired"]) == (str(path), False)
    assert "the remote has it" in found["problem"]
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
    assert "the remote does not have it" in found["problem"]
    assert "dvc repro --force" in found["remedy"]
    assert path.read_bytes() == rotten


def test_a_rotten_file_of_the_checkout_comes_back_from_the_cache(project):
    file = project / "pictures/2.bin"
    whole = file.read_bytes()
    flip(file)
    assert "up to date" in say(*DVC, "status")
    code, (found,) = verified(project)
    assert (code, found["what"]) == (1, "pictures/2.bin")
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
    assert "DVC's remote cannot be used (" in found[0]["problem"]
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
    assert "its bytes are not those of its name" in found[1]["problem"]


def test_while_a_command_of_dvc_runs_the_rest_is_looked_at(project):
    (weights,) = (project / "mlartifacts").rglob("model.safetensors")
    flip(weights)
    shutil.rmtree(project / "models")
    with dvc_cache.dvc_cache():
        code, (cache, champion) = verified(project, repair=True)
    assert code == 1
    assert cache["what"] == "DVC's cache"
    assert champion["what"] == "version 1 of diffusion"
    assert "it could not be repaired (" in champion["problem"]


def test_a_champion_counts_as_repaired_once_the_store_has_it(project, monkeypatch):
    (weights,) = (project / "mlartifacts").rglob("model.safetensors")
    flip(weights)
    with monkeypatch.context() as patch:
        # A store that takes the files, and does not keep them.
        patch.setattr(MlflowClient, "log_model_artifact", lambda *_: None)
        code, (found,) = verified(project, repair=True)
        assert (code, found["is_repaired"]) == (1, False)
    assert verified(project, repair=True)[0] == 0


def test_no_store_is_made(project, tmp_path, caplog):
    environment = Environment(tracking_uri=f"sqlite:///{tmp_path}/none.db", device="cpu")
    verify.run(environment, repair=True, as_json=False)
    assert "no champion was looked at, because the tracking store " in caplog.text
    assert not (tmp_path / "none.db").exists()


def test_a_rotten_model_is_found_by_its_own_hash_and_repaired(project):
    weights = project / "models/model.safetensors"
    flip(weights)
    code, found = verified(project)
    assert code == 1
    assert {each["what"] for each in found} == {"models", "models/model.safetensors"}
    assert verified(project, repair=True)[0] == 0
    assert verified(project) == (0, [])


@pytest.mark.parametrize("source", ["the checkout", "DVC's cache"])
def test_a_champion_whose_files_rotted_is_uploaded_again(project, source):
    environment = environment_of(project)
    client = connect(environment)
    (weights,) = (project / "mlartifacts").rglob("model.safetensors")
    if source == "DVC's cache":
        version = client.get_model_version_by_alias(environment.registered_model, "champion")
        for name in ("model.safetensors", "model.json"):
            md5 = entry(project, project / "models" / name)
            tag = f"dvc.models/{name}"
            client.set_model_version_tag(version.name, version.version, tag, md5.parent.name + md5.name)
        shutil.rmtree(project / "models")
    flip(weights)
    code, (found,) = verified(project)
    assert (code, found["what"]) == (1, f"version 1 of {environment.registered_model}")
    code, (found,) = verified(project, repair=True)
    assert (code, found["is_repaired"]) == (0, True)
    load_version(client, environment.registered_model)
    # Without its files, too.
    shutil.rmtree(weights.parent)
    assert verified(project, repair=True)[0] == 0
    load_version(client, environment.registered_model)


def test_a_rotten_checkpoint_is_found_and_set_aside(project):
    folder = project / ".checkpoints" / ("a" * 16)
    for step in (1, 2):
        save_checkpoint(folder, Checkpoint(step, {"model": {"w": torch.ones(9)}}, {}))
    assert verified(project) == (0, [])
    flip(folder / "step-000000001/model.safetensors")
    code, (found,) = verified(project)
    assert (code, found["what"]) == (1, f".checkpoints/{'a' * 16}/step-000000001")
    assert verified(project, repair=True)[0] == 1
    assert [path.name for path in checkpoints(folder)] == ["step-000000002"]
    # It stays a finding until it is removed, or there again.
    aside = folder / "step-000000001.damaged-0"
    code, (found,) = verified(project)
    assert (code, found["what"]) == (1, str(aside.relative_to(project)))
    assert "is lost" in found["problem"]
    shutil.copytree(aside, folder / "step-000000001")
    flip(folder / "step-000000001/model.safetensors")
    assert verified(project) == (0, [])
    shutil.rmtree(folder / "step-000000001")
    assert verified(project)[0] == 1
    shutil.rmtree(aside)
    assert verified(project) == (0, [])


def test_a_store_that_does_not_answer_is_said_and_the_rest_is_looked_at(project):
    flip(entry(project, project / "pictures/1.bin"))
    done = run(project, "verify", DIFFUSION_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    rotten, store = done.stdout.splitlines()
    assert "its bytes are not those of its name" in rotten
    assert store.startswith("verify: the champion of diffusion: it could not be looked at (")


def test_outside_a_project_it_is_one_sentence(tmp_path):
    done = run(tmp_path, "verify")
    assert done.returncode == 2
    assert done.stderr.endswith("error: .dvc is missing: run the command from the project's folder\n")
