"""The commands that need a checkout of the project: flows and servers, which are not in the installed package."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from diffusion_core.errors import UserError

commands = typer.Typer()
stack = typer.Typer(help="A team's servers on this machine.", no_args_is_help=True, rich_markup_mode=None)
commands.add_typer(stack, name="stack")


@commands.command(epilog="Example: diffusion run")
def run() -> None:
    """Run the whole pipeline once, as Prefect does every night."""
    _run("flows.pipeline")


@commands.command(epilog="Example: diffusion serve")
def serve() -> None:
    """Run the nightly schedule and the pages of Prefect and MLflow."""
    _run("stack.serve")


@commands.command(epilog="Example: diffusion deploy kubernetes")
def deploy(
    pool: Annotated[str, typer.Argument(help="The work pool: machine, docker or kubernetes.")] = "machine",
) -> None:
    """Deploy the nightly run to the Prefect server."""
    _run("flows.deploy", pool)


@stack.command(epilog="Example: diffusion stack up")
def up() -> None:
    """Start PostgreSQL, an S3 store, MLflow, Prefect and a worker."""
    _run("stack", "up")


@stack.command(epilog="Example: diffusion stack down")
def down() -> None:
    """Stop the servers of `up`; the data remain."""
    _run("stack", "down")


@stack.command(epilog="Example: diffusion stack renew-passwords")
def renew_passwords() -> None:
    """Give all servers new passwords."""
    _run("stack", "renew-passwords")


def flow_runs(model: str) -> list[dict[str, Any]] | None:
    """Return a registered model's runs on the user's Prefect server, or None if there is no checkout or no server.

    Raises:
        UserError: the server cannot be used.
    """
    if not Path("flows").is_dir():
        return None
    child = subprocess.run([sys.executable, "-m", "flows.nights", model], capture_output=True, text=True, check=False)
    if child.returncode:
        lines = child.stderr.strip().splitlines() or ["error: Prefect cannot read its settings"]
        raise UserError(lines[-1].removeprefix("error: "))
    found: list[dict[str, Any]] | None = json.loads(child.stdout)
    return found


def _run(module: str, *arguments: str) -> None:
    """Replace this process by a module in the project's folder."""
    place = Path(*module.split("."))
    if not (place.is_dir() or place.with_suffix(".py").exists()):
        raise UserError(f"{place.parts[0]}/ is not in this folder: run the command in a checkout of the project")
    if os.name == "nt":
        sys.exit(subprocess.call([sys.executable, "-m", module, *arguments]))
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
