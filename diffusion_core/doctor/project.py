"""The checkout: params.yaml, git, and who works here."""

import subprocess
from collections.abc import Iterator

from diffusion_core.config.environment import Environment
from diffusion_core.config.params import PARAMS_FILE, load_settings
from diffusion_core.doctor.diagnosis import Diagnosis, of_error, ok, problem, warning
from diffusion_core.errors import UserError
from diffusion_core.locks import is_held
from diffusion_core.stages.paths import PARAMS_BEFORE, RUN_LOCK, TRAINING_LOCK
from diffusion_core.stages.preflight import check_repository


def params(_: Environment) -> Iterator[Diagnosis]:
    """Check params.yaml, and that no run which was killed has left its overrides in it."""
    if not PARAMS_FILE.exists():
        yield ok(f"there is no {PARAMS_FILE} here: this folder is not a project, so its state is not checked")
        return
    try:
        load_settings()
        yield ok(f"{PARAMS_FILE} is valid")
    except UserError as error:
        yield of_error(error)
    if PARAMS_BEFORE.exists() and not is_held(RUN_LOCK):
        yield problem(
            f"{PARAMS_FILE} may have the overrides of a run that was killed",
            f"look at `diff {PARAMS_FILE} {PARAMS_BEFORE}`; the next run restores it",
        )


def git(_: Environment) -> Iterator[Diagnosis]:
    """Check for a repository, a commit and an identity, which DVC and scheduled runs need."""
    if not PARAMS_FILE.exists():
        return
    check_repository()
    if _git("rev-parse", "--git-dir").returncode:
        yield warning("DVC works without git here, and scheduled runs clone a repository", "`git init`, and commit")
        return
    if _git("rev-parse", "--verify", "--quiet", "HEAD").returncode:
        yield warning("the repository has no commit, and scheduled runs clone one", "commit")
        return
    if any(_git("config", "--get", key).returncode for key in ("user.name", "user.email")):
        yield warning(
            "git knows no name of yours, which `dvc exp run` needs where you run it",
            "`git config user.name NAME`, and `git config user.email ADDRESS`",
        )
    else:
        yield ok(f"the commit is {_git('rev-parse', '--short', 'HEAD').stdout.strip()}")


def processes(_: Environment) -> Iterator[Diagnosis]:
    """Say which of this project's commands work here now."""
    if is_held(RUN_LOCK):
        yield ok("a run works in this folder")
    if is_held(TRAINING_LOCK):
        yield ok("a training works in this folder")


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
