"""What becomes of a run's dvc.lock."""

import subprocess

import pytest
import yaml
from prefect import flow

from flows.checkout import LockPolicy
from flows.failure import StageFailed
from flows.lock_file import keep_lock
from tests.flows.repository import commit, git
from tests.flows.runs import artifacts

pytestmark = pytest.mark.usefixtures("prefect_server")


@flow(name="keep")
def keep(policy: LockPolicy):
    # What may pass is tried again at once.
    keep_lock.with_options(retry_delay_seconds=0)(policy)


@pytest.fixture
def checkout(project, tmp_path, monkeypatch):
    """A shallow clone, as a worker makes it, in which a run has written dvc.lock; git knows no committer."""
    for name, value in {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "user.useConfigOnly")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "true")
    commit(project)
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", "--depth", "1", project.as_uri(), str(clone))
    (clone / "dvc.lock").write_text("schema: '2.0'\n")
    (clone / "params.yaml").write_text("train: {seed: 7}\n")
    monkeypatch.chdir(clone)
    return clone


def test_it_stays_by_the_policy_none(checkout, project):
    before = git(project, "for-each-ref")
    state = keep("none", return_state=True)
    assert state.is_completed()
    assert git(project, "for-each-ref") == before
    assert artifacts(state.state_details.flow_run_id) == {}


def test_it_is_on_the_runs_page_by_the_policy_artifact(checkout):
    state = keep("artifact", return_state=True)
    text = artifacts(state.state_details.flow_run_id)["dvc-lock"]["data"]
    assert text == "```yaml\nschema: '2.0'\n```"


def test_it_is_in_a_branch_of_the_runs_own_by_the_policy_branch_and_the_checkout_as_it_was(checkout, project):
    before = git(checkout, "status", "--porcelain"), git(checkout, "rev-parse", "HEAD")
    assert keep("branch", return_state=True).is_completed()
    (branch,) = [name for name in git(project, "branch", "--format=%(refname:short)").splitlines() if "/" in name]
    assert branch.startswith("runs/")
    assert git(project, "show", f"{branch}:dvc.lock") == "schema: '2.0'"
    assert yaml.safe_load(git(project, "show", f"{branch}:params.yaml")) == {"train": {"seed": 7}}
    assert git(project, "rev-parse", f"{branch}^") == before[1]
    changed = git(project, "diff", "--name-only", f"{branch}^", branch).split()
    assert changed == ["dvc.lock", "params.yaml"]
    assert (git(checkout, "status", "--porcelain"), git(checkout, "rev-parse", "HEAD")) == before


def test_nothing_is_pushed_where_nothing_has_changed(checkout, project):
    git(checkout, "checkout", "--quiet", ".")
    for name in ("dvc.lock", "params.yaml"):
        (checkout / name).unlink(missing_ok=True)
    git(checkout, "checkout", "--quiet", ".")
    assert keep("branch", return_state=True).is_completed()
    assert "/" not in git(project, "branch", "--format=%(refname:short)")


def test_a_branch_that_cannot_be_pushed_is_told_without_the_password(checkout):
    git(checkout, "remote", "set-url", "origin", "http://somebody:secret@127.0.0.1:9/nowhere.git")
    with pytest.raises(StageFailed, match="set the parameter lock to none or artifact") as caught:
        keep("branch")
    assert "127.0.0.1:9" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_these_clones_know_no_committer(checkout):
    known = subprocess.run(["git", "var", "GIT_COMMITTER_IDENT"], cwd=checkout, capture_output=True, check=False)
    assert known.returncode != 0
