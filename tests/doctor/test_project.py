import shutil
import subprocess

import pytest

from diffusion_core.config.environment import Environment
from diffusion_core.doctor import project
from diffusion_core.errors import UserError
from diffusion_core.locks import exclusive_lock
from diffusion_core.stages.paths import PARAMS_BEFORE, RUN_LOCK
from tests.doctor.findings import is_silent, worst
from tests.flows.repository import CHECKOUT

ENVIRONMENT = Environment()


@pytest.fixture(autouse=True)
def params(folder):
    shutil.copy(CHECKOUT / "params.yaml", folder)
    return folder / "params.yaml"


def test_a_wrong_key_of_the_params_is_found(params):
    assert is_silent(project.params, ENVIRONMENT)
    params.write_text(params.read_text().replace("image_size:", "image_sise:"))
    assert "unknown key prepare.image_sise" in worst(project.params, ENVIRONMENT).sentence
    params.unlink()
    assert is_silent(project.params, ENVIRONMENT)


def test_overrides_that_a_killed_run_left_are_found(params):
    PARAMS_BEFORE.parent.mkdir()
    shutil.copy(params, PARAMS_BEFORE)
    with exclusive_lock(RUN_LOCK):
        assert is_silent(project.params, ENVIRONMENT)
        assert [each.sentence for each in project.processes(ENVIRONMENT)] == ["a run works in this folder"]
    assert "overrides of a run that was killed" in worst(project.params, ENVIRONMENT).sentence
    assert not [*project.processes(ENVIRONMENT)]


def git(*arguments):
    subprocess.run(["git", "-c", "user.name=A", "-c", "user.email=a@b.c", *arguments], check=True, capture_output=True)


def test_what_git_lacks_is_found(folder, monkeypatch):
    with pytest.raises(UserError, match=r"not in a git repository, which DVC needs: say `git init`, and commit$"):
        [*project.git(ENVIRONMENT)]
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    assert "without git" in worst(project.git, ENVIRONMENT).sentence
    shutil.rmtree(folder / ".dvc")
    git("init")
    assert "no commit" in worst(project.git, ENVIRONMENT).sentence
    git("commit", "--allow-empty", "--message", "first")
    assert "git knows no name of yours" in worst(project.git, ENVIRONMENT).sentence
    git("config", "user.name", "A")
    git("config", "user.email", "a@b.c")
    assert is_silent(project.git, ENVIRONMENT)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="git is not installed"):
        [*project.git(ENVIRONMENT)]
