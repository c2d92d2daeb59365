"""Checks what every run reads, before a server starts for it: `python -m diffusion_core.stages.preflight`."""

import subprocess
import sys
from pathlib import Path

from configobj import ConfigObj, ConfigObjError

from diffusion_core.config.environment import load_environment
from diffusion_core.config.params import load_settings
from diffusion_core.errors import UserError
from diffusion_core.stages.remote import DVC


def check_repository() -> None:
    """Check that git is installed and this folder in a repository, which DVC needs unless `core.no_scm` is set.

    Raises:
        UserError: it is not.
    """
    if _is_without_git():
        return
    command = ["git", "rev-parse", "--git-dir"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError("git is not installed, which DVC needs: install it") from None
    if "dubious ownership" in done.stderr:
        raise UserError(
            f"git does not trust {Path.cwd()}, whose owner is another user: say"
            f" `git config --global --add safe.directory {Path.cwd()}`"
        )
    if done.returncode:
        raise UserError(f"{Path.cwd()} is not in a git repository, which DVC needs: say `git init`, and commit")


def _is_without_git() -> bool:
    """Return whether the project is one of `dvc init --no-scm`."""
    try:
        config = ConfigObj(str(DVC / "config"), encoding="utf-8", interpolation=False)
    except (ConfigObjError, UnicodeDecodeError):
        # DVC reports it with the line.
        return False
    return str(config.get("core", {}).get("no_scm", "")).lower() == "true"


def main() -> None:
    """Check variables, params.yaml and the repository; exit code 2 and one sentence for what the user must correct."""
    try:
        load_environment()
        load_settings()
        check_repository()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
