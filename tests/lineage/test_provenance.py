import subprocess

import pytest

from diffusion_core.errors import UserError
from diffusion_core.lineage.provenance import dvc_hashes, dvc_tags, git_state, json_digest, provenance_tags

MODEL_MD5 = "99914b932bd37a50b983c5e7c90ae93b"
LOCK = """
schema: '2.0'
stages:
  prepare:
    cmd: x
    outs:
    - {path: data/prepared, hash: md5, md5: 0123.dir, size: 1, nfiles: 2}
  train:
    cmd: x
    deps:
    - {path: data/prepared, hash: md5, md5: 0123.dir}
    outs:
    - {path: models/model.json, hash: md5, md5: 99914b932bd37a50b983c5e7c90ae93b, size: 2}
  sample:
    cmd: x
    deps:
    - {path: models/model.json, hash: md5, md5: aa}
    - {path: some/code.py, hash: md5, md5: cc}
    outs:
    - {path: samples, hash: md5, md5: bb.dir, size: 9, nfiles: 3}
"""


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    git(tmp_path, "init")
    (tmp_path / "code.py").write_text("1")
    (tmp_path / "dvc.lock").write_text(LOCK)
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_commit_is_named(checkout):
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True)
    assert git_state().commit == head.stdout.strip()
    assert provenance_tags()["git_commit"] == head.stdout.strip()


def test_a_changed_tracked_file_makes_it_dirty(checkout):
    assert git_state().dirty is False
    (checkout / "code.py").write_text("2")
    assert git_state().dirty is True
    assert provenance_tags()["git_dirty"] == "true"


def test_what_git_does_not_track_and_dvc_lock_leave_it_clean(checkout):
    (checkout / "new.txt").write_text("x")
    (checkout / "dvc.lock").write_text(LOCK + "\n")
    assert git_state().dirty is False


def test_code_that_git_does_not_track_makes_it_dirty(checkout):
    (checkout / "diffusion_core").mkdir()
    (checkout / "diffusion_core" / "mine.py").write_text("x")
    assert git_state().dirty is True
    (checkout / ".gitignore").write_text("mine.py")
    assert git_state().dirty is False


def test_dirt_is_seen_from_a_folder_below(checkout, monkeypatch):
    (checkout / "below").mkdir()
    monkeypatch.chdir(checkout / "below")
    (checkout / "code.py").write_text("2")
    assert git_state().dirty is True


def test_outside_a_checkout_nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv("PREFECT__FLOW_RUN_ID", raising=False)
    assert git_state().commit is None
    assert git_state().dirty is None
    assert provenance_tags() == {}


def test_without_git_nothing_is_known(checkout, monkeypatch):
    monkeypatch.setenv("PATH", str(checkout))
    assert git_state().commit is None


def test_the_flow_run_is_a_tag(monkeypatch):
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "an-id")
    assert provenance_tags()["prefect_flow_run"] == "an-id"


@pytest.fixture
def outputs(checkout):
    """What dvc.lock tells of, but for the samples, which have changed since."""
    for name, content in {"data/prepared/below/one": "x", "data/prepared/two": "", "models/model.json": "{}"}.items():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(content)
    (checkout / "samples").mkdir()
    return checkout


@pytest.mark.usefixtures("outputs")
def test_the_md5_comes_from_dvc_lock():
    assert dvc_hashes() == {"data/prepared": "0123.dir", "models/model.json": MODEL_MD5}
    assert dvc_tags(within="models/") == {"dvc.models/model.json": MODEL_MD5}
    assert dvc_tags() == {"dvc.data/prepared": "0123.dir", "dvc.models/model.json": MODEL_MD5}


def test_the_md5_is_not_that_of_files_which_dvc_has_not_seen(outputs):
    (outputs / "models/model.json").write_text("[]")
    assert "models/model.json" not in dvc_hashes()
    (outputs / "models/model.json").unlink()
    (outputs / "data/prepared/two").write_text("y")
    assert dvc_hashes() == {}
    (outputs / "data/prepared/two").unlink()
    assert dvc_hashes() == {}


def test_without_dvc_lock_there_is_no_md5(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert dvc_hashes() == {}


@pytest.mark.parametrize("content", ["stages: [", "other: 1", "stages: {train: {outs: [{md5: x}]}}", "[]", "\xff"])
def test_a_broken_dvc_lock_is_told(tmp_path, content):
    lock = tmp_path / "dvc.lock"
    lock.write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"dvc\.lock cannot be read"):
        dvc_hashes(lock)


def test_a_digest_depends_on_content_and_not_on_its_order():
    assert json_digest({"a": 1, "b": 2}) == json_digest({"b": 2, "a": 1}) != json_digest({"a": 2, "b": 1})
