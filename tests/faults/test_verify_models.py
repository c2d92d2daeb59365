"""`diffusion verify` finds models, champions and checkpoints that rotted, and repairs what can be had again."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from diffusion_core.config.environment import Environment
from diffusion_core.lineage import dvc_cache
from diffusion_core.lineage.checkpoints import checkpoints
from diffusion_core.registry.connection import connect
from diffusion_core.registry.versions import load_version
from diffusion_core.stages import verify
from diffusion_core.training.checkpoint import Checkpoint, save_checkpoint
from tests.faults.commands import run
from tests.faults.git_dvc import DVC, say
from tests.faults.verifying import entry, environment_of, flip, verified
from tests.registry.servers import refusing_server


@pytest.fixture
def project(whole_project):
    """In the place of the one of the stages."""
    return whole_project


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


@pytest.mark.parametrize("lost", ["a bit", "a file", "all files", "the whole folder"])
def test_a_champion_of_a_store_that_was_moved_is_repaired_where_the_store_is(project, tmp_path, monkeypatch, lost):
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.copyfile(project / "mlflow.db", moved / "mlflow.db")
    shutil.move(project / "mlartifacts", moved / "mlartifacts")
    environment = Environment(tracking_uri=f"sqlite:///{moved}/mlflow.db", device="cpu")
    monkeypatch.setattr("tests.faults.verifying.environment_of", lambda _: environment)
    assert verified(project) == (0, [])
    (weights,) = moved.rglob("model.safetensors")
    if lost == "a bit":
        flip(weights)
    elif lost == "a file":
        weights.unlink()
    elif lost == "all files":
        shutil.rmtree(weights.parent)
    else:
        # With MLmodel and the rest, as in .../m-1234/artifacts/artifacts/models.
        shutil.rmtree(weights.parents[2])
    assert verified(project)[0] == 1
    assert verified(project, repair=True)[0] == 0
    assert verified(project) == (0, [])
    # Nothing is written to the place where it was.
    assert not (project / "mlartifacts").exists()


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


def test_what_repair_leaves_because_its_time_is_new_has_a_remedy_that_works(project):
    weights = project / "models/model.safetensors"
    whole = weights.read_bytes()
    flip(weights)
    weights.touch()
    for repair, remedy in (
        (False, "say `diffusion verify --repair`, or make it again with `dvc repro -f train`"),
        (True, "`--repair` leaves a file that is missing or has a new time, as a stage may be at work: run"),
    ):
        code, (found,) = verified(project, repair)
        assert (code, found["what"]) == (1, "models")
        assert found["remedy"].startswith(remedy)
    assert weights.read_bytes() != whole
    assert "run `dvc checkout --force models`" in found["remedy"]
    say(*DVC, "checkout", "--force", "-q", "models")
    assert weights.read_bytes() == whole
    assert verified(project) == (0, [])


def name_entries(project):
    """Let the tags of the champion name its files' entries in DVC's cache, as `publish` does; return the entries."""
    environment = environment_of(project)
    client = connect(environment)
    version = client.get_model_version_by_alias(environment.registered_model, "champion")
    names = ("model.safetensors", "model.json")
    entries = [entry(project, project / "models" / name) for name in names]
    for name, md5 in zip(names, entries, strict=True):
        client.set_model_version_tag(version.name, version.version, f"dvc.models/{name}", md5.parent.name + md5.name)
    return entries


@pytest.mark.parametrize("source", ["the version", "nothing"])
def test_a_rotten_entry_of_a_model_comes_back_from_its_registered_version(project, source):
    path, _ = name_entries(project)
    whole = path.read_bytes()
    flip(path)
    (project / "models/model.safetensors").unlink()
    shutil.rmtree(project.parent / "remote")
    if source == "nothing":
        # The control: what has rotted in the store too is not put into the cache.
        (weights,) = (project / "mlartifacts").rglob("model.safetensors")
        flip(weights)
    code, found = verified(project)
    assert (code, found[0]["what"]) == (1, str(path))
    assert "models/model.safetensors of models.dvc" in found[0]["problem"]
    assert found[0]["problem"].endswith("and version 1 of diffusion has it")
    code, found = verified(project, repair=True)
    assert found[0]["is_repaired"] is (source == "the version")
    assert (path.read_bytes() == whole) is (source == "the version")


@pytest.mark.parametrize("source", ["the checkout", "DVC's cache", "the remote", "nothing"])
def test_a_champion_whose_files_rotted_is_uploaded_again(project, source):
    environment = environment_of(project)
    client = connect(environment)
    (weights,) = (project / "mlartifacts").rglob("model.safetensors")
    if source != "the checkout":
        entries = name_entries(project)
        shutil.rmtree(project / "models")
        if source != "DVC's cache":
            for path in entries:
                path.unlink()
        if source == "nothing":
            shutil.rmtree(project.parent / "remote")
    flip(weights)
    code, (found,) = verified(project)
    assert (code, found["what"]) == (1, f"version 1 of {environment.registered_model}")
    assert found["remedy"].startswith("say `diffusion verify --repair`; if that fails, restore the store's artifacts")
    code, (found,) = verified(project, repair=True)
    if source == "nothing":
        assert (code, found["is_repaired"]) == (1, False)
        assert found["remedy"].startswith("restore the store's artifacts from a backup")
        return
    assert (code, found["is_repaired"]) == (0, True)
    load_version(client, environment.registered_model)
    # Without one of its files, and without both.
    for remove in ((weights.parent / "model.json").unlink, lambda: shutil.rmtree(weights.parent)):
        remove()
        assert verified(project, repair=True)[0] == 0
        load_version(client, environment.registered_model)


def test_a_checkpoint_that_cannot_be_read_hides_no_other(project, monkeypatch, capsys):
    """The disk's answer is given here."""
    folders = [project / ".checkpoints" / (name * 16) for name in "ab"]
    for folder in folders:
        save_checkpoint(folder, Checkpoint(1, {"model": {"w": torch.ones(9)}}, {}))
    refused, rotten = (folder / "step-000000001/model.safetensors" for folder in folders)
    flip(rotten)
    open_file = Path.open

    def stale(path, *arguments, **options):
        if path.absolute() == refused:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return open_file(path, *arguments, **options)

    monkeypatch.chdir(project)
    monkeypatch.setattr(Path, "open", stale)
    with pytest.raises(SystemExit):
        verify.run(environment_of(project), repair=True, as_json=True)
    found = {
        Path(each["what"]).parent.name: each["problem"] for each in json.loads(capsys.readouterr().out)["findings"]
    }
    assert "cannot be read now (Stale file handle)" in found["a" * 16]
    assert "differs from its manifest" in found["b" * 16]
    assert not rotten.exists()


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
    assert "does not have the hash in its name" in rotten
    assert store.startswith("verify: the champion of diffusion: it could not be looked at (")


def test_a_store_that_refuses_a_request_is_said_by_verify_and_by_clean(project):
    flip(entry(project, project / "pictures/1.bin"))
    with refusing_server() as address:
        verified_by, cleaned = (
            run(project, command, DIFFUSION_TRACKING_URI=address, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
            for command in ("verify", "clean")
        )
    assert (verified_by.returncode, cleaned.returncode) == (1, 0)
    assert "Traceback" not in verified_by.stderr + cleaned.stderr
    rotten, store = verified_by.stdout.splitlines()
    assert "does not have the hash in its name" in rotten
    assert f"the tracking store {address} refuses a request (" in store
    assert "clean: DVC's cache stays, because the registered versions are not known (" in cleaned.stdout
