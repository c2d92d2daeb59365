"""Calls of git, whose errors are one sentence."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from diffusion_core.errors import UserError


class GitRefuses(UserError):
    """Git is missing, or refuses a command."""


def git(*arguments: str, folder: Path | None = None, codes: Sequence[int] = (0,)) -> str:
    """Run git and return its output.

    Args:
        *arguments: its arguments.
        folder: where it runs; by default the working directory.
        codes: exit codes of success.

    Raises:
        GitRefuses: git is missing or has another exit code.
        UnicodeDecodeError: its output is not UTF-8.
    """
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=False)
    except FileNotFoundError:
        raise GitRefuses("git is not installed: install it") from None
    if done.returncode not in codes:
        why = " ".join(done.stderr.decode(errors="replace").split())
        raise GitRefuses(f"`git {arguments[0]}` fails ({why}): correct that and run this again")
    return done.stdout.decode()
