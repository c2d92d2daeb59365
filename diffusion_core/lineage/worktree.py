"""A worktree of an earlier commit, with the changes that its checkout had and its data."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dvc.exceptions import CheckoutError, DvcException
from dvc.repo import Repo

from diffusion_core.errors import UserError
from diffusion_core.lineage.dvc_cache import translate_errors
from diffusion_core.lineage.git import GitRefuses, git

# Hooks of the user are for the user's own commands.
NO_HOOKS = ("-c", "core.hooksPath=/dev/null")


def check_commit(commit: str) -> None:
    """Check that this folder is in a clone that has a commit.

    Raises:
        UserError: it is not.
    """
    try:
        git("rev-parse", "--git-dir")
    except GitRefuses as error:
        raise UserError(f"this folder is not a checkout of git, whose commit is needed ({error})") from None
    if not re.fullmatch(r"[0-9a-f]{40,64}", commit):
        raise UserError(f"{commit!r} is not a commit: correct the version's tag git_commit in MLflow")
    try:
        git("cat-file", "-e", f"{commit}^{{commit}}")
    except GitRefuses:
        raise UserError(
            f"the commit {commit} is not in this clone: fetch it with `git fetch --all` or `git fetch origin {commit}`"
        ) from None


def make_worktree(folder: Path, commit: str, changes: str) -> Path:
    """Make a worktree, in the place of what an interrupted call left there.

    Args:
        folder: the worktree's folder.
        commit: the commit.
        changes: what `git apply` adds to it, or empty.

    Returns:
        The project's folder in it, which is below where the project is below the root of its repository.

    Raises:
        UserError: git refuses.
    """
    below = git("rev-parse", "--show-prefix").strip()
    remove_worktree(folder)
    git(*NO_HOOKS, "worktree", "add", "--force", "--detach", "--quiet", str(folder), commit)
    if changes:
        patch = folder.with_name("changes.diff")
        patch.write_text(changes, encoding="utf-8", newline="")
        git("apply", "--whitespace=nowarn", str(patch.absolute()), folder=folder)
    return folder / below


def remove_worktree(folder: Path) -> None:
    """Remove a worktree, or what is left of one."""
    with suppress(GitRefuses):
        git("worktree", "remove", "--force", str(folder))
    shutil.rmtree(folder, ignore_errors=True)


def bring(project: Path, output: Path) -> None:
    """Bring an output that a worktree's dvc.lock names, from the cache of this folder's project or else its remote.

    Args:
        project: the project's folder in the worktree.
        output: path of the output in it.

    Raises:
        UserError: neither has it.
    """
    with translate_errors(), _sharing(project) as (repo, has_remote):
        try:
            repo.checkout(targets=[str(project / output)])
        except CheckoutError:
            missing = f"{output} of that commit is not in DVC's cache"
            if not has_remote:
                raise UserError(f"{missing}, and there is no remote: name it with `diffusion remote`") from None
            try:
                repo.pull(targets=[str(project / output)])
            except (DvcException, OSError) as error:
                why = " ".join(str(error).split())
                raise UserError(
                    f"{missing}, and the remote does not give it ({why}): push it from where it is"
                ) from None


@contextmanager
def _sharing(project: Path) -> Iterator[tuple[Repo, bool]]:
    """Yield DVC's project in a worktree, with cache and remote of the one in this folder."""
    here = Repo(".")
    try:
        shared = {name: here.config[name] for name in ("core", "remote") if name in here.config}
        # The folder of objects is files/md5 in it.
        shared["cache"] = {"dir": str(Path(here.cache.local.path).parents[1])}
        repo = Repo(str(project), config=shared)
        try:
            yield repo, bool(here.config["core"].get("remote"))
        finally:
            repo.close()
    finally:
        here.close()
