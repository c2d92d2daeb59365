"""Stores the dvc.lock of a run, the record of the data, code and parameters of its outputs."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from prefect import get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact

from diffusion_core.address import without_credentials
from flows.checkout import LockPolicy, committer
from flows.failure import StageFailed
from flows.tasks import NETWORK_SECONDS, task_options
from flows.transcript import without_userinfo

LOCK = Path("dvc.lock")
# The tracked files that a run changes; overrides change params.yaml.
FILES = (LOCK, Path("params.yaml"))


@task(**task_options("keep-lock", timeout_seconds=NETWORK_SECONDS))
def keep_lock(policy: LockPolicy) -> None:
    """Store dvc.lock according to a policy.

    Raises:
        StageFailed: the branch cannot be pushed.
    """
    policies: dict[LockPolicy, Callable[[], str]] = {
        "none": lambda: "dvc.lock stays in this checkout alone, by the parameter lock",
        "artifact": _to_page,
        "branch": _to_branch,
    }
    get_run_logger().info(policies[policy]())


def _to_page() -> str:
    # Prefect's database keeps it.
    text = f"```yaml\n{without_credentials(LOCK.read_text(encoding='utf-8'))}```"
    create_markdown_artifact(text, key="dvc-lock", description="Put it in the place of dvc.lock, and `dvc pull`.")
    return "dvc.lock is an artifact of this run"


def _to_branch() -> str:
    """Push a commit without changing the branch, index and files of the checkout."""
    files = [str(file) for file in FILES if file.exists()]
    if not _git("status", "--porcelain", "--", *files):
        return "dvc.lock has not changed"
    # The id makes the branch unique; characters that branch names must not have are replaced.
    name = re.sub(r"[^A-Za-z0-9]+", "-", runtime.flow_run.name or "run").strip("-")
    branch = f"runs/{name}-{str(runtime.flow_run.id)[:8]}"
    with TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
        _git("read-tree", "HEAD", **index)
        _git("add", "--force", "--", *files, **index)
        tree = _git("write-tree", **index)
    message = f"Record the outputs of the run {runtime.flow_run.name}"
    commit = _git("commit-tree", tree, "-p", "HEAD", "-m", message, **committer())
    # The branch is for this run only, so that a retry can replace the commit of the first attempt.
    _git("push", "--quiet", "--force", "origin", f"{commit}:refs/heads/{branch}")
    overridden = ", and params.yaml with its overrides" if _git("diff", "--name-only", "--", "params.yaml") else ""
    return f"dvc.lock is in the branch {branch}{overridden}: merge it, and `dvc pull`"


def _git(*arguments: str, **variables: str) -> str:
    """Return the output of git.

    Raises:
        StageFailed: git fails; the message has no passwords of addresses.
    """
    # Without a terminal, git must not prompt for a password.
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", **variables}
    git = subprocess.run(["git", *arguments], env=environment, capture_output=True, text=True, check=False)
    if git.returncode:
        why = without_userinfo(" ".join(git.stderr.split()))
        raise StageFailed(
            f"dvc.lock cannot be kept in a branch, because `git {arguments[0]}` fails ({why}): let the worker's git"
            " push to origin, or set the parameter lock to none or artifact",
            is_mistake=True,
            is_transient=arguments[0] == "push",
        )
    return git.stdout.strip()
