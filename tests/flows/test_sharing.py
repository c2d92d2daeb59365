"""Runs in checkouts of their own share what they make; here by a folder, in tests/stack by a bucket."""

import shutil
from pathlib import Path

import pytest
import yaml
from prefect import flow

from flows import tasks
from flows.failure import StageFailed
from flows.pipeline import pipeline
from tests.flows.repository import commit, git, ran

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A folder that machines share."""
    folder = tmp_path / "remote"
    folder.mkdir()
    monkeypatch.setenv(tasks.REMOTE, str(folder))
    monkeypatch.setattr(tasks.pull, "retry_delay_seconds", [0.0, 0.0])
    monkeypatch.setattr(tasks.push, "retry_delay_seconds", [0.0, 0.0])
    return folder


def clone(project, name, monkeypatch):
    folder = project.parent / name
    git(project, "clone", "--quiet", str(project), str(folder))
    monkeypatch.chdir(folder)
    return folder


def test_what_one_checkout_has_made_another_does_not_make_again(project, remote, monkeypatch):
    commit(project)
    one = clone(project, "one", monkeypatch)
    pipeline()
    assert "train" in [stage for stage, _ in ran(one)]
    # Neither dvc.lock nor a cache goes along: what was made of which inputs is known by the remote alone.
    other = clone(project, "other", monkeypatch)
    assert not (other / "dvc.lock").exists()
    pipeline()
    assert [stage for stage, _ in ran(other)] == ["ingest", "check", "publish", "promote", "report"]
    assert (other / "models/model.safetensors").read_bytes() == (one / "models/model.safetensors").read_bytes()
    assert yaml.safe_load((other / "dvc.lock").read_text()) == yaml.safe_load((one / "dvc.lock").read_text())


@flow(name="only-pull")
def only_pull():
    tasks.pull()


def test_a_clone_with_a_lock_file_pulls_what_it_names_and_a_checkout_that_lasts_keeps_its_own(
    project, remote, monkeypatch
):
    commit(project)
    one = clone(project, "one", monkeypatch)
    pipeline()
    commit(one)
    other = clone(one, "other", monkeypatch)
    # A clone has these folders, with what git keeps in them.
    assert (other / "models/.gitignore").exists()
    only_pull()
    assert (other / "data/raw/content").exists()
    assert (other / "models/model.safetensors").exists()
    (other / "models/model.safetensors").write_text("made here, and not yet known to DVC")
    only_pull()
    assert (other / "models/model.safetensors").read_text() == "made here, and not yet known to DVC"


def test_without_the_remote_everything_would_be_made_again(project, remote, monkeypatch):
    commit(project)
    clone(project, "one", monkeypatch)
    pipeline()
    shutil.rmtree(remote)
    remote.mkdir()
    other = clone(project, "other", monkeypatch)
    pipeline()
    assert "train" in [stage for stage, _ in ran(other)]


def test_a_model_is_shared_as_soon_as_it_is_trained(project, remote, monkeypatch):
    (project / "on_sample.py").write_text("raise RuntimeError('a bug')")
    commit(project)
    one = clone(project, "one", monkeypatch)
    with pytest.raises(StageFailed, match="sample ended with exit code"):
        pipeline()
    hashes = {
        out["path"]: out["md5"] for out in yaml.safe_load((one / "dvc.lock").read_text())["stages"]["train"]["outs"]
    }
    md5 = hashes["models/model.safetensors"]
    assert (remote / "files/md5" / md5[:2] / md5[2:]).exists()


def test_a_remote_that_fails_is_tried_again_and_the_run_then_fails_with_a_sentence(project, remote, monkeypatch):
    commit(project)
    one = clone(project, "one", monkeypatch)
    (one / "on_train.py").write_text(
        f"import pathlib, shutil; place = pathlib.Path({str(remote)!r}); shutil.rmtree(place); place.touch()"
    )
    with pytest.raises(StageFailed, match="^push ended with exit code"):
        pipeline()
    assert Path("models/model.safetensors").exists()
